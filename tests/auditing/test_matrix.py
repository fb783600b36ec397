"""Audits that are faulty by design: each carries its caveat in every renderer, or is refused before long work."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calor_hf import AuditOptions, LeakageReport, PrivateImages, audit, load_generator
from calor_hf.auditing import power
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.generators.dcgan import DCGAN, DCGANConfig
from calor_hf.targets.module_target import ModuleTarget
from tests.auditing.renderers import RENDERERS, WRONG

SIDE, PEOPLE = 16, 8


@pytest.fixture(scope="module")
def faces() -> PrivateImages:
    parts = (load_synthetic_faces(PEOPLE, 20, image_size=SIDE, split=split) for split in ("train", "test"))
    return PrivateImages.from_dataset(*parts, image_size=SIDE)


class Named(ModuleTarget):
    """Target that knows the names of its classes."""

    class_names = [f"identity_{number:03d}" for number in range(PEOPLE)]  # noqa: RUF012


def classifier(faces: PrivateImages, penalty: float) -> ModuleTarget:
    """Ridge regression from pixels to people, solved exactly: all training images right, 98 % of the others."""
    pixels = faces.images.flatten(1).double() / 255
    mean, wanted = pixels.mean(dim=0), nn.functional.one_hot(faces.labels, PEOPLE).double() - 1 / PEOPLE
    gram = (pixels - mean) @ (pixels - mean).T + penalty * torch.eye(len(pixels))
    layer = nn.Linear(3 * SIDE**2, PEOPLE)
    layer.weight.data = 20 * ((pixels - mean).T @ torch.linalg.solve(gram, wanted)).T.float()
    layer.bias.data = -layer.weight.data @ mean.float()
    return Named(nn.Sequential(nn.Flatten(), layer), PEOPLE, SIDE, head="1")


def prior(scale: float, steps: tuple[int, int] | None = None) -> DCGAN:
    """A prior of random weights, whose images differ the less the smaller its last layer is: all gray at 0."""
    torch.manual_seed(0)
    made = DCGAN(DCGANConfig(image_size=SIDE, width=4, discriminator="none")).eval()
    for weight in made.last.parameters():
        weight.data *= scale
    made.trained_steps = steps
    return made


def gray(faces: PrivateImages) -> PrivateImages:
    return dataclasses.replace(faces, images=faces.images[:, :1].expand(-1, 3, -1, -1))


def photographs(faces: PrivateImages, name: str = "photos") -> PrivateImages:
    """The same images, of which it is not known that they were drawn."""
    return dataclasses.replace(faces, name=name, true_identity=None, identity_names=())


def permuted(faces: PrivateImages, people: int = PEOPLE) -> PrivateImages:
    """Images of the first people under the numbers of others, without names that would tell."""

    def other(labels: torch.Tensor) -> torch.Tensor:
        return torch.where(labels < people, (labels + 1) % people, labels)

    assert faces.held_labels is not None
    return dataclasses.replace(
        faces, label_names=(), labels=other(faces.labels), held_labels=other(faces.held_labels)
    )  # fmt: skip


def weak(faces: PrivateImages) -> ModuleTarget:
    """Names the first person for all images."""
    model = classifier(faces, 100.0)
    next(iter(model.head.parameters())).data *= 0.001  # type: ignore[attr-defined]
    return model


Changes = Callable[[PrivateImages], dict[str, Any]]
SOUND = "nothing is wrong"
CONDITIONS: dict[str, tuple[Changes, str]] = {
    SOUND: (lambda faces: {}, "8 of 8 people were attacked"),
    "prior of blotches": (
        lambda faces: {"prior": prior(0.0), "private": photographs(faces)}, "cannot draw these people"
    ),
    "unfinished prior": (lambda faces: {"prior": prior(5.0, (300, 2000))}, "it had 300 of 2000 steps"),
    "color prior, gray images": (
        lambda faces: {"prior": prior(5.0), "private": gray(faces)}, "in color, and the private images are gray"
    ),
    "gray prior, color images": (lambda faces: {"prior": prior(0.0)}, "gray, and the private images are in color"),
    "weak evaluation model": (
        lambda faces: {"evaluation_model": weak(faces), "prior": prior(5.0)}, "The evaluation model is weak"
    ),
    "3 steps": (lambda faces: {"attacks": ["bypass:steps=3"]}, "ran with 1.0 % of its source's effort"),
    "one person": (lambda faces: {"classes": [3]}, "1 of 8 people were attacked"),
    "partly mismatched class order": (
        lambda faces: {"private": permuted(faces, 5)}, "37.5 % of the images that it is said to have learned"
    ),
}  # fmt: skip
"""For each condition, what it changes in a sound audit, and words of its caveat."""


def run(faces: PrivateImages, folder: Path, prior: Any = None, private: Any = None, **changes: Any) -> LeakageReport:
    """A sound audit, but for the changes."""
    known: dict[str, Any] = {"evaluation_model": classifier(faces, 100.0), "attacks": ["bypass"], "budget": 0.2}
    known |= changes
    return audit(
        classifier(faces, 1.0), private or faces, prior or load_generator("renderer", image_size=SIDE),
        known.pop("evaluation_model"), AuditOptions(output_dir=str(folder), images_per_class=2, **known),
    )  # fmt: skip


@pytest.fixture(scope="module", params=CONDITIONS)
def audited(
    request: pytest.FixtureRequest, faces: PrivateImages, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, LeakageReport]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(power, "PROJECTION", dataclasses.replace(power.PROJECTION, steps=30, pool=100))
        patch.setattr(power, "GUIDANCE", dataclasses.replace(power.GUIDANCE, steps=10, pool=100))
        changes, _ = CONDITIONS[request.param]
        report = run(faces, tmp_path_factory.mktemp("audit"), **changes(faces))
    return request.param, report


@pytest.mark.parametrize("renderer", RENDERERS)
def test_every_renderer_carries_the_caveat(renderer: str, audited: tuple[str, LeakageReport]) -> None:
    (condition, report), (text_of, _) = audited, RENDERERS[renderer]
    text = text_of(report)
    assert CONDITIONS[condition][1] in text
    if report.verdict.kind == "inconclusive":
        assert WRONG.search(text) is None
    if condition == SOUND:
        assert report.verdict.kind != "inconclusive"
        assert [words for name, (_, words) in CONDITIONS.items() if name != SOUND and words in text] == []


def other_names(faces: PrivateImages) -> PrivateImages:
    return dataclasses.replace(faces, label_names=("zoe", *faces.label_names[1:]))


REFUSED: dict[str, tuple[Changes, str]] = {
    "renderer for real images": (
        lambda faces: {"private": photographs(faces)}, "'photos' holds other images: this audit could find nothing"
    ),
    "renderer for images that are called drawn": (
        lambda faces: {"private": photographs(faces, "synthetic faces")}, "the prior 'renderer' draws synthetic faces"
    ),
    "copy of the target as evaluation model": (
        lambda faces: {"evaluation_model": classifier(faces, 1.0)}, "the evaluation model is the target or a copy of it"
    ),
    "nearly a copy": (
        lambda faces: {"evaluation_model": classifier(faces, 1.001)}, "the target or a copy of it, and agrees with it"
    ),
    "mismatched class order": (
        lambda faces: {"private": permuted(faces)}, "0 of 160 images that it is said to have learned, no more than by"
    ),
    "other people": (lambda faces: {"private": other_names(faces)}, "it lacks identity_000 and has zoe instead"),
}  # fmt: skip


@pytest.mark.parametrize("condition", REFUSED)
def test_refused_before_the_first_step(condition: str, faces: PrivateImages, tmp_path: Path) -> None:
    changes, words = REFUSED[condition]
    with pytest.raises(ValueError, match=words):
        run(faces, tmp_path / "audit", **changes(faces))
    assert not (tmp_path / "audit").exists()
