"""Every generator: images, latents, files, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calor_hf.data.face_renderer import IDENTITY_NAMES, render_faces
from calor_hf.generators import GENERATORS, Generator, load_generator
from tests.attacks.tiny_world import PRIORS, SIDE, tiny_generator

WITH_BLOCKS = [name for name, (kind, _) in PRIORS.items() if "_run_block" in vars(GENERATORS.get(kind))]


def images_of(generator: Generator[Any], seed: int = 0) -> torch.Tensor:
    latents = generator.sample_latents(6, np.random.default_rng(seed))
    with torch.no_grad():
        images: torch.Tensor = generator(latents, torch.arange(6) % 5)
    return images


def test_every_generator_is_tried() -> None:
    assert {name for name, _ in PRIORS.values()} == set(GENERATORS.names())


@pytest.mark.parametrize("prior", PRIORS)
def test_images_lie_in_their_range_and_depend_on_their_own_row(prior: str) -> None:
    generator = tiny_generator(prior)
    images = images_of(generator)
    assert images.shape == (6, 3, SIDE, SIDE)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std(dim=0).max() > 1e-3
    latents = generator.sample_latents(6, np.random.default_rng(0))
    torch.testing.assert_close(generator(latents[2:3], torch.tensor([2])), images[2:3])
    assert torch.equal(images_of(generator), images)
    assert not torch.equal(images_of(generator, seed=1), images)


def test_the_readme_says_what_is_true_and_keeps_the_rest(tmp_path: Path) -> None:
    generator, card = tiny_generator("dcgan", torch.float32), tmp_path / "README.md"
    generator.save_pretrained(tmp_path)
    assert "- Not trained by calor_hf.\n" in card.read_text()
    assert "Trained on" not in card.read_text()
    card.write_text(f"mine\n{card.read_text()}mine too\n")
    generator.trained_steps = 3, 1500
    generator.trained_with = {"images": 2000, "drawn": True, "digest": None, "minutes": None}
    generator.save_pretrained(tmp_path)
    text = card.read_text()
    assert "Training: **unfinished**, 3 of 1,500 steps." in text
    assert "Trained on 2,000 synthetic faces drawn by calor_hf, which show no one." in text
    assert "Not trained" not in text
    assert text.startswith("mine\n")
    assert text.endswith("mine too\n")
    assert load_generator(str(tmp_path)).trained_with == generator.trained_with
    for damaged in ("all", ["all"]):
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "trained_with": damaged}))
        with pytest.raises(ValueError, match="no generator"):
            load_generator(str(tmp_path))


@pytest.mark.parametrize("prior", PRIORS)
def test_what_is_saved_comes_back(prior: str, tmp_path: Path) -> None:
    generator = tiny_generator(prior, torch.float32)
    generator.save_pretrained(tmp_path)
    read = load_generator(str(tmp_path))
    assert type(read) is type(generator)
    assert read.config == generator.config
    assert not read.training
    latents = generator.sample_latents(3, np.random.default_rng(0)).float()
    assert torch.equal(read(latents, torch.tensor([0, 1, 2])), generator(latents, torch.tensor([0, 1, 2])))
    assert torch.equal(type(generator).from_pretrained(tmp_path)(latents, torch.tensor([0, 1, 2])), read(
        latents, torch.tensor([0, 1, 2])))  # fmt: skip
    assert read.has_realism == generator.has_realism
    if read.has_realism:
        images = torch.rand(4, 3, SIDE, SIDE)
        assert read.realism(images, torch.tensor([0, 0, 1, 1]), 2).shape == (4,)
    else:
        with pytest.raises(ValueError, match="no discriminator to evaluate realism"):
            read.realism(torch.rand(1, 3, SIDE, SIDE))


@pytest.mark.parametrize("prior", PRIORS)
def test_blocks_run_one_by_one_or_together(prior: str) -> None:
    generator = tiny_generator(prior)
    latents = generator.sample_latents(3, np.random.default_rng(0))
    labels = torch.tensor([0, 1, 2])
    if generator.num_blocks == 0:
        with pytest.raises(ValueError, match="cannot be taken apart"):
            generator.run_blocks(latents, labels=labels)
        with pytest.raises(ValueError, match="cannot be taken apart"):
            generator.hidden_shape(1)
        return
    images = generator(latents, labels)
    hidden, image = generator.run_blocks(latents, labels=labels)
    assert image is not None
    assert torch.equal(image, images)
    end, count = hidden, generator.num_blocks
    entering: Any = None
    painted: Any = None
    for block in range(count):
        hidden, painted = generator.run_blocks(latents, entering, block, block + 1, painted, labels)
        assert hidden.shape == (3, *generator.hidden_shape(block + 1))
        assert hidden.shape[2] == hidden.shape[3] == 4 * 2**block
        if block + 1 < count:
            rest = generator.run_blocks(latents, hidden, block + 1, None, painted, labels)[1]
            torch.testing.assert_close(rest, images)
            other = generator.run_blocks(latents, hidden.roll(1, 0), block + 1, None, painted, labels)[1]
            assert not torch.allclose(other, images)  # type: ignore[arg-type]
        entering = hidden
    torch.testing.assert_close(entering, end)
    torch.testing.assert_close(painted, images)


@pytest.mark.parametrize("prior", WITH_BLOCKS)
def test_blocks_that_do_not_fit_are_told(prior: str) -> None:
    generator = tiny_generator(prior)
    latents, labels = generator.sample_latents(2, np.random.default_rng(0)), torch.tensor([0, 1])
    count = generator.num_blocks
    hidden = torch.zeros(2, *generator.hidden_shape(1), dtype=torch.float64)
    for start, stop in [(-1, None), (0, 0), (1, 1), (0, count + 1), (count, None)]:
        with pytest.raises(ValueError, match=rf"0 <= start < stop <= {count} of .*, got {start} and {stop}"):
            generator.run_blocks(latents, hidden, start, stop, labels=labels)
    for start, wrong in [(0, hidden), (1, None), (1, hidden[:, :, :2])]:
        with pytest.raises(ValueError, match=rf"expected a map of .* for block {start}, got"):
            generator.run_blocks(latents, wrong, start, labels=labels)
    for start in (0, count + 1):
        with pytest.raises(ValueError, match=f"the blocks 1 to {count} of .*, got {start}"):
            generator.hidden_shape(start)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generator": "stylegan9"},
            r"is a generator 'stylegan9', known: conditional, dcgan, .*; update",
        ),
        ({"settings": {"image_size": 16, "width": 8}}, "damaged: its settings and weights do not fit"),
        ({"settings": {"image_size": 17}}, r"damaged: .*power of two"),
        ({"settings": {"color": "red"}}, r"damaged: .*no setting color"),
        ({"settings": None}, "damaged"),
    ],
)
def test_a_wrong_configuration_is_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny_generator("dcgan", torch.float32).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_generator(str(tmp_path))


@pytest.mark.parametrize("content", ["[" * 100_000, "{}{", '{"generator": "dcgan", "settings": [1]}'])
def test_a_damaged_configuration_is_told(content: str, tmp_path: Path) -> None:
    tiny_generator("dcgan", torch.float32).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="damaged"):
        load_generator(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}"])
def test_broken_weights_are_told(content: bytes, tmp_path: Path) -> None:
    tiny_generator("dcgan", torch.float32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_generator(str(tmp_path))


def test_no_generator_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no generator at .*train one with calor-hf prior"):
        load_generator(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"its config\.json names none"):
        load_generator(str(tmp_path))
    with pytest.raises(ValueError, match="has to be trained"):
        load_generator("dcgan")


def test_the_renderer_draws_as_the_data_do() -> None:
    generator = load_generator("renderer", image_size=32)
    latents = generator.sample_latents(4, np.random.default_rng(0))
    numbers = torch.special.erf(latents / 2**0.5)
    count = len(IDENTITY_NAMES)
    torch.testing.assert_close(generator(latents), render_faces(numbers[:, :count], numbers[:, count:], 32))
    identity = generator.identity(latents)
    assert identity is not None
    torch.testing.assert_close(identity, numbers[:, :count])
    assert tiny_generator("dcgan").identity(latents) is None


def test_a_conditional_generator_wants_classes() -> None:
    generator = tiny_generator("conditional")
    with torch.no_grad():  # untrained, all classes look alike
        for module in generator.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight += torch.randn_like(module.weight)
    latents = generator.sample_latents(2, np.random.default_rng(0))
    one, other = (generator(latents, torch.full((2,), label)) for label in (0, 1))
    assert not torch.allclose(one, other)
    with pytest.raises(ValueError, match="labels"):
        generator(latents)
