"""Pipelines of `diffusers` as priors: an unconditional U-Net and its noise schedule."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.core.files import read_json
from calor_hf.generators.base import GENERATORS
from calor_hf.generators.denoiser import Denoiser, DenoiserConfig, unet

INDEX, WEIGHTS = "model_index.json", "diffusion_pytorch_model"


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig(DenoiserConfig):
    """Settings of :class:`Diffusers`."""

    network: str = setting("{}", "Settings of the UNet2DModel, as JSON.")
    scheduler: str = setting("{}", "Settings of its scheduler, as JSON.")


@GENERATORS.register("diffusers")
class Diffusers(Denoiser[DiffusersConfig]):
    """Unconditional UNet2DModel with a DDPM or DDIM schedule, whose predictions are read as a flow's.

    ``diffusers:FOLDER_OR_ID`` loads a pipeline, ``diffusers:FOLDER,decode_steps=20,gradient=straight_through`` with
    settings. A noisy image √ᾱ · data + √(1 − ᾱ) · noise is, divided by √ᾱ + √(1 − ᾱ), the point of a flow at the time
    √ᾱ / (√ᾱ + √(1 − ᾱ)), and a step of DDIM is an Euler step there. Predicted data are cut to [−1, 1] as the scheduler
    says, and the noise follows from them (``use_clipped_model_output``).

    Nothing of a pipeline is run but its U-Net: weights are safetensors, or .bin files read with ``weights_only``.

    Source:
        Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239; Song et al., "Denoising
        Diffusion Implicit Models", ICLR 2021, arXiv:2010.02502; azrealwang/DiffMI (straight through).
    """

    config_class = DiffusersConfig

    def __init__(self, config: DiffusersConfig) -> None:
        super().__init__(config)
        self.network: Any = unet({"sample_size": config.image_size, **json.loads(config.network)})

    @classmethod
    def load(cls, source: str, **options: Any) -> "Diffusers":
        """Load a pipeline from ``FOLDER_OR_ID[,NAME=VALUE...]``; options are those of the Hub.

        Raises:
            ValueError: no pipeline, one of another kind, or one whose weights are in another form.
        """
        place, *words = source.split(",")
        found = Path(place) if Path(place).is_dir() else _downloaded(place, options)
        try:
            index = read_json(found / INDEX)
        except (OSError, ValueError) as error:
            raise ValueError(f"expected a pipeline of diffusers in {place}, with {INDEX} ({error})") from error
        kinds = {part: (index.get(part) or [None, None])[1] for part in ("unet", "scheduler")}
        if kinds["unet"] != "UNet2DModel" or kinds["scheduler"] not in ("DDPMScheduler", "DDIMScheduler"):
            raise ValueError(
                f"expected a pipeline of UNet2DModel and DDPMScheduler or DDIMScheduler in {place}, got "
                f"{kinds['unet']} and {kinds['scheduler']}; pass one that draws images from noise alone, in pixels"
            )
        # Old pipelines have all files in one folder.
        network, schedule = (found / part if (found / part).is_dir() else found for part in ("unet", "scheduler"))
        settings = {k: v for k, v in read_json(network / "config.json").items() if not k.startswith("_")}
        scheduler = {k: v for k, v in read_json(schedule / "scheduler_config.json").items() if not k.startswith("_")}
        side = settings.pop("sample_size", None)
        if not isinstance(side, int) or settings.get("in_channels", 3) != 3 or settings.get("num_class_embeds"):
            raise ValueError(f"expected a U-Net for square color images without classes in {place}, got {settings}")
        config = DiffusersConfig.from_dict(
            {
                **DiffusersConfig.parse(words),
                "image_size": side,
                "network": json.dumps(settings),
                "scheduler": json.dumps(scheduler),
            }
        )
        made = cls(config)
        made.network = _weights(type(made.network), network, place)
        return made

    def denoise(self, points: Tensor, time: Tensor) -> Tensor:
        """Data that the network predicts, at the nearest time of its schedule between two of its steps."""
        known = self._flow_times.to(time)  # descending
        time = time.clamp(known[-1], known[0])
        later = torch.searchsorted(-known, -time).clamp(1, len(known) - 1)  # first step that is at least as noisy
        share = (known[later - 1] - time) / (known[later - 1] - known[later])
        step = later - 1 + share
        scale = torch.hypot(time, 1 - time)
        signal, noise = ((part / scale)[:, None, None, None] for part in (time, 1 - time))
        noisy = points / scale[:, None, None, None]
        said: Tensor = self.network(noisy, step).sample
        kind = self._scheduler.config.prediction_type
        if kind == "epsilon":
            clean = (noisy - noise * said) / signal
        elif kind == "v_prediction":
            clean = signal * noisy - noise * said
        else:
            clean = said
        span = self._scheduler.config.clip_sample_range
        kept: Tensor = clean.clamp(-span, span) if self._scheduler.config.clip_sample else clean
        return kept

    def times(self) -> Sequence[float]:
        """Those of the scheduler's steps."""
        self._scheduler.set_timesteps(self.config.decode_steps)
        return [float(self._flow_times[step]) for step in self._scheduler.timesteps]

    @cached_property
    def _scheduler(self) -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler.from_config(json.loads(self.config.scheduler))

    @cached_property
    def _flow_times(self) -> Tensor:
        signal: Tensor = self._scheduler.alphas_cumprod.double()
        return signal.sqrt() / (signal.sqrt() + (1 - signal).sqrt())


def _downloaded(source: str, options: dict[str, Any]) -> Path:
    parts = [INDEX, "*config.json", f"*{WEIGHTS}.safetensors"]
    try:
        folder = Path(snapshot_download(source, allow_patterns=parts, **options))
        if not list(folder.rglob(f"{WEIGHTS}.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=[*parts, f"*{WEIGHTS}.bin"], **options))
    except (OSError, ValueError) as error:  # a name that no repository can have is a ValueError
        raise ValueError(f"no pipeline of diffusers at {source} ({error}); pass a folder or a Hub id") from error
    return folder


def _weights(kind: Any, folder: Path, place: str) -> Any:
    safe = (folder / f"{WEIGHTS}.safetensors").is_file()
    if not safe and not (folder / f"{WEIGHTS}.bin").is_file():
        raise ValueError(f"expected {WEIGHTS}.safetensors or .bin in {folder}; save the pipeline with save_pretrained")
    try:
        return kind.from_pretrained(folder, use_safetensors=safe, local_files_only=True)
    except Exception as error:
        raise ValueError(f"the weights of the pipeline in {place} cannot be read: {error}") from error
