"""Names, classes, and the files that a registry imports."""

from pathlib import Path

import pytest

from calor_hf.core.registry import Registry


class Alpha:
    pass


class Beta:
    pass


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    """Registry of a package on disk whose file ``gamma.py`` leaves a trace, as its file ``_delta.py`` would."""
    package = tmp_path / f"methods_of_{tmp_path.name}"  # a name of its own: modules stay imported
    package.mkdir()
    (package / "__init__.py").touch()
    trace = "from pathlib import Path\n(Path(__file__).parent / (__name__.split('.')[-1] + '.seen')).touch()\n"
    (package / "gamma.py").write_text(trace)
    (package / "_delta.py").write_text(trace)
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[object] = Registry("method", package.name)
    registry.register("beta")(Beta)
    registry.register("alpha")(Alpha)
    return registry


def test_names_are_sorted_and_lead_to_their_classes(registry: Registry[object]) -> None:
    assert registry.names() == ["alpha", "beta"]
    assert registry.get("alpha") is Alpha
    assert registry.get("beta") is Beta


def test_unknown_name_gets_a_suggestion_and_the_list(registry: Registry[object]) -> None:
    with pytest.raises(KeyError, match=r"unknown method 'alpah'\. Did you mean 'alpha'\? Known: alpha, beta"):
        registry.get("alpah")


def test_name_like_no_other_gets_the_list_only(registry: Registry[object]) -> None:
    with pytest.raises(KeyError, match=r"unknown method 'zzz'\. Known: alpha, beta"):
        registry.get("zzz")


def test_second_class_of_a_name_is_refused(registry: Registry[object]) -> None:
    with pytest.raises(ValueError, match=r"method 'alpha' is already .*Alpha"):
        registry.register("alpha")(Beta)
    assert registry.get("alpha") is Alpha


def test_the_same_class_may_register_again(registry: Registry[object]) -> None:
    registry.register("alpha")(Alpha)  # a module that is imported anew
    assert registry.names() == ["alpha", "beta"]


def test_modules_are_imported_on_first_use_but_not_with_an_underscore(
    registry: Registry[object], tmp_path: Path
) -> None:
    assert sorted(tmp_path.glob("*/*.seen")) == []
    registry.names()
    assert [file.name for file in tmp_path.glob("*/*.seen")] == ["gamma.seen"]
