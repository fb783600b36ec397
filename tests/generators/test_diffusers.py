"""A stranger's pipeline of diffusers as a prior."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calor_hf.generators import load_generator
from tests.attacks.tiny_world import tiny_target

SIDE = 16


def pipeline(folder: Path, safe: bool = True, **schedule: Any) -> Any:
    """A tiny pipeline as diffusers saves it, and its network."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIDE, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    made = DDPMPipeline(network, DDPMScheduler(num_train_timesteps=100, beta_end=0.2, **schedule))
    made.save_pretrained(folder, safe_serialization=safe)
    return made


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
def test_images_are_those_of_ddim(kind: str, clip: bool, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    made = pipeline(tmp_path, prediction_type=kind, clip_sample=clip)
    generator = load_generator(f"diffusers:{tmp_path},decode_steps=4").double()
    latents = generator.sample_latents(2, np.random.default_rng(0))
    scheduler = DDIMScheduler.from_config(made.scheduler.config)
    scheduler.set_timesteps(4)
    points, network = latents.view(2, 3, SIDE, SIDE), made.unet.double()
    with torch.no_grad():
        for step in scheduler.timesteps:
            said = network(points, step).sample
            points = scheduler.step(said, step, points, use_clipped_model_output=True).prev_sample
        found = generator(latents)
    torch.testing.assert_close(found, ((points + 1) / 2).clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_a_point_of_a_flow_is_denoised_at_its_own_noise(tmp_path: Path) -> None:
    made = pipeline(tmp_path, clip_sample=False)
    generator: Any = load_generator(f"diffusers:{tmp_path}").double()
    made.unet.double()
    data, noise = torch.randn(2, 1, 3, SIDE, SIDE, dtype=torch.float64)
    signal = made.scheduler.alphas_cumprod[30].double()
    a, s = signal.sqrt(), (1 - signal).sqrt()
    noisy = a * data + s * noise
    with torch.no_grad():
        expected = (noisy - s * made.unet(noisy, 30).sample) / a
        found = generator.denoise(noisy / (a + s), (a / (a + s))[None])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("old", [False, True])
def test_weights_are_safe_or_read_as_weights_alone(old: bool, tmp_path: Path) -> None:
    pipeline(tmp_path / "a", safe=not old)
    folder = tmp_path / "a"
    if old:  # all files in one folder, as google/ddpm-celebahq-256
        for file in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
            file.rename(folder / file.name)
        (folder / "unet").rmdir()
        (folder / "scheduler").rmdir()
    generator = load_generator(f"diffusers:{folder},decode_steps=2")
    generator.save_pretrained(tmp_path / "b")
    again = load_generator(str(tmp_path / "b"))
    latents = generator.sample_latents(2, np.random.default_rng(0)).float()
    assert torch.equal(generator(latents), again(latents))
    assert again.config == generator.config


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    pipeline(tmp_path, safe=False)
    torch.save({"conv_in.weight": Bomb()}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"the weights of the pipeline in .* cannot be read"):
        load_generator(f"diffusers:{tmp_path}")
    assert not (tmp_path / "exploded").exists()


def test_other_pipelines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pipeline of diffusers at"):
        load_generator(f"diffusers:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="expected a pipeline of diffusers in"):
        load_generator(f"diffusers:{tmp_path}")
    pipeline(tmp_path)
    with pytest.raises(ValueError, match="decode_step"):
        load_generator(f"diffusers:{tmp_path},decode_step=3")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="got UNet2DConditionModel and DDPMScheduler; pass one that draws"):
        load_generator(f"diffusers:{tmp_path}")
    with pytest.raises(ValueError, match="the generator 'dcgan' reads no files of other libraries"):
        load_generator(f"dcgan:{tmp_path}")


def test_it_serves_gradient_attacks_and_sfmi(tmp_path: Path) -> None:
    from calor_hf.attacks.specs import parse_attack

    pipeline(tmp_path)
    for spec, settings in (("sfmi:steps=3", ""), ("plg:steps=2", ""), ("plg:steps=2", ",gradient=straight_through")):
        generator = load_generator(f"diffusers:{tmp_path},decode_steps=2{settings}").double()
        found = parse_attack(spec).attack.run(tiny_target(), generator, [0, 2], images_per_class=1)
        images: Tensor = found.images
        assert images.shape == (2, 3, SIDE, SIDE)
        assert images.isfinite().all()
