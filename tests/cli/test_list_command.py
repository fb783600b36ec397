"""`calor-hf list`: every registered name, its settings and where it comes from."""

import dataclasses
from typing import Any

import pytest

from calor_hf.attacks import ATTACKS
from calor_hf.cli.main import main
from calor_hf.core.registry import Registry
from calor_hf.defenses import DEFENSES
from calor_hf.generators import GENERATORS
from calor_hf.priors import PRIORS

KINDS: dict[str, Registry[Any]] = {"defenses": DEFENSES, "attacks": ATTACKS, "generators": GENERATORS, "priors": PRIORS}
NAMED = [(registry, name) for registry in KINDS.values() for name in registry.names()]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["list", *words]) == 0
    return capsys.readouterr().out


def test_all_names_are_listed_by_kind_with_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    blocks: dict[str, dict[str, str]] = {}
    kind = ""
    for line in shown(capsys).splitlines():
        if line.startswith("  "):
            name, _, summary = line.strip().partition(" ")
            blocks[kind][name] = summary.strip()
        else:
            kind = line.partition(" ")[0]
            blocks[kind] = {}
    assert list(blocks) == list(KINDS)
    for kind, registry in KINDS.items():
        assert list(blocks[kind]) == registry.names()
        assert all(summary.endswith(".") for summary in blocks[kind].values()), kind
    assert blocks["priors"]["gmi"].startswith("Faces of no one in particular")


def test_a_name_of_two_kinds_shows_both(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "gmi")
    attack, prior = text.split("gmi (priors): ")
    assert attack.startswith("gmi (attacks): ")
    assert "arXiv:1911.07135" in attack
    assert "  momentum = 0.9\n" in attack
    assert "preset calor: " in attack
    assert "Faces of no one in particular" in prior
    assert "  penalty = 10.0\n      Weight of the gradient penalty.\n" in prior
    assert "  steps = 30000\n" in prior
    assert "momentum" not in prior


@pytest.mark.parametrize("name", sorted({name for _, name in NAMED}))
def test_every_setting_is_shown_with_default_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, name)
    methods = [registry.get(name) for registry, known in NAMED if known == name]
    for method in methods:
        for field in dataclasses.fields(method.config_class):
            assert field.metadata.get("help"), f"{name}: {field.name} has no help"
            assert f"  {field.name} = {field.default!r}\n      {field.metadata['help']}\n" in text
    assert text.count("settings:") == len(methods)


@pytest.mark.parametrize(
    ("name", "near"),
    [("plgg", "plg"), ("zzz", None), ("calour", "calor"), ("dcgn", "dcgan"), ("stylegan", "stylegan2")],
)
def test_an_unknown_name_gets_a_suggestion_and_the_list(
    name: str, near: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", name]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"calor-hf list: unknown name '{name}'.")
    assert ("Did you mean" in message) == (near is not None)
    if near is not None:
        assert f"Did you mean '{near}'?" in message
    for _, known in NAMED:
        assert known in message
