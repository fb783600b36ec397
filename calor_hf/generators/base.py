"""Base class of the generators: images from latents, saved and shared like a model."""

import copy
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from calor_hf._version import __version__
from calor_hf.core.config import MethodConfig
from calor_hf.core.files import read_json, read_text, write_json, write_whole
from calor_hf.core.label_names import class_order
from calor_hf.core.registry import Registry

C = TypeVar("C", bound=MethodConfig)

RENDERER = "renderer"
"""Name of the prior that needs no training: the program that draws the synthetic faces."""
_FACTS = re.compile(r"<!-- calor_hf:begin prior -->.*?<!-- calor_hf:end prior -->", re.DOTALL)
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class Generator(nn.Module, ModelHubMixin, ABC, Generic[C]):
    """Images from latents, with :meth:`save_pretrained`, :meth:`from_pretrained` and ``push_to_hub``.

    Attributes:
        config: The settings, frozen.
        name: Its registered name.
        latent_dim: Width of the latents.
        image_size: Side of the images in pixels.
        num_classes: Number of classes of a conditional generator; None for an unconditional one.
        class_names: Names of these classes; empty if they are not known.
        trained_steps: Steps of its training that were done, and that were planned; None if unknown.
        trained_with: Number of training ``images``; ``drawn``, whether this library drew them; ``digest`` of the files;
            ``minutes``, the budget that its size was chosen for, if any.
    """

    config_class: ClassVar[type[MethodConfig]]
    name: ClassVar[str]
    latent_dim: int
    image_size: int
    num_classes: int | None = None
    class_names: Sequence[str] = ()
    class_order: Sequence[int] | None = None  # own number of each label, see for_classes
    trained_steps: tuple[int, int] | None = None
    trained_with: Mapping[str, Any] | None = None

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config
        self._channels: list[int] = []  # of the map after each block

    @property
    def has_realism(self) -> bool:
        """Whether :meth:`realism` is available."""
        return getattr(self, "discriminator", None) is not None

    @property
    def num_blocks(self) -> int:
        """Number of blocks that :meth:`run_blocks` can run one by one; 0 if it cannot."""
        return len(self._channels)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 3, side, side) in [0, 1] from (batch, latent_dim), and labels (batch,) if it has classes.

        In evaluation mode an image depends on its own row alone.
        """
        image = self.run_blocks(latents, labels=labels)[1]
        assert image is not None  # the last block was run
        return image

    def realism(self, images: Tensor, labels: Tensor | None = None, group: int = 1) -> Tensor:
        """How real images look to the network that the generator was trained against; higher is more real.

        Args:
            images: (batch, 3, image_size, image_size) in [0, 1].
            labels: (batch,), if it has classes.
            group: Number of neighbors that are evaluated together, for minibatch discrimination.

        Returns:
            (batch,) in the unit of the training loss.

        Raises:
            ValueError: there is no such network (``has_realism`` is False).
        """
        raise ValueError(f"the generator '{self.name}' has no discriminator to evaluate realism")

    def for_classes(self, class_names: Sequence[str]) -> "Generator[C]":
        """Return the generator for labels of a target whose classes have these names; weights are shared.

        Raises:
            ValueError: it was trained for other classes.
        """
        if not self.class_names:
            return self
        order = class_order(self.class_names, class_names, f"the prior '{self.name}'")
        if order == self.class_order:
            return self
        view = copy.copy(self)
        view.class_order = order
        return view

    def own_labels(self, labels: Tensor | None) -> Tensor | None:
        """Labels of :meth:`for_classes` as the generator's own numbers."""
        if labels is None or self.class_order is None:
            return labels
        return torch.tensor(self.class_order, device=labels.device)[labels]

    def run_blocks(
        self,
        latents: Tensor,
        hidden: Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        image: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the blocks ``start`` to ``stop`` alone, for attacks that optimize feature maps.

        Block 0 makes the first map, of 4 pixels, from the latents; each later one doubles the side. With the last
        block the image is finished: ``generator(latents, labels)`` equals ``run_blocks(latents, labels=labels)[1]``.

        Args:
            latents: (batch, latent_dim); only the blocks that are run read them.
            hidden: Map entering block ``start``, (batch, *hidden_shape(start)); None, and only then, for block 0.
            start: First block run, in [0, num_blocks).
            stop: Block before which it stops, in (start, num_blocks]; None means num_blocks.
            image: Output of the earlier blocks, as they returned it; None drops it. Read by generators whose
                blocks each add to the image; the others paint in the last block alone and ignore it.
            labels: (batch,), if it has classes.

        Returns:
            The map after the last block run, (batch, *hidden_shape(stop)), and the image: in [0, 1] and
            (batch, 3, image_size, image_size) if the last block was run; before, what was painted so far in the
            generator's own unit and size, None if it has no such unit.

        Raises:
            ValueError: it cannot be taken apart, or the blocks or the map do not fit.
        """
        end = self.num_blocks if stop is None else stop
        if self.num_blocks and not 0 <= start < end <= self.num_blocks:
            raise ValueError(
                f"expected blocks 0 <= start < stop <= {self.num_blocks} of '{self.name}', got {start} and {stop}"
            )
        expected = None if start == 0 and self.num_blocks else self.hidden_shape(start)
        got = None if hidden is None else tuple(hidden.shape[1:])
        if got != expected:
            raise ValueError(f"expected a map of (channels, height, width) {expected} for block {start}, got {got}")
        labels = self.own_labels(labels)
        for block in range(start, end):
            hidden, image = self._run_block(block, latents, hidden, image, labels)
        assert hidden is not None  # at least one block was run
        return hidden, image

    def _run_block(
        self, block: int, latents: Tensor, hidden: Tensor | None, image: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one block; arguments and results as of :meth:`run_blocks`."""
        raise NotImplementedError

    def hidden_shape(self, start: int) -> tuple[int, int, int]:
        """(channels, height, width) of the map entering block ``start``, 1 to num_blocks (there: after the last).

        Raises:
            ValueError: it cannot be taken apart, or no map enters there.
        """
        if not self.num_blocks:
            raise ValueError(f"the generator '{self.name}' cannot be taken apart into blocks")
        if not 1 <= start <= self.num_blocks:
            raise ValueError(f"maps enter the blocks 1 to {self.num_blocks} of '{self.name}', got {start}")
        side = 4 * 2 ** (start - 1)
        return self._channels[start - 1], side, side

    def identity(self, latents: Tensor) -> Tensor | None:
        """Return (n, k) true identity numbers of the images, or None if the generator does not know them."""
        return None

    def sample_latents(self, count: int, rng: np.random.Generator) -> Tensor:
        """(count, latent_dim) latents as the generator was trained on: standard normal; on the CPU in float64."""
        return torch.from_numpy(rng.standard_normal((count, self.latent_dim)))

    @property
    def latent_deviation(self) -> float:
        """Standard deviation of :meth:`sample_latents`, the unit of an attack's steps."""
        return 1.0

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next((weight.dtype for weight in self.parameters()), torch.float32)

    # Files: what ModelHubMixin's save_pretrained, from_pretrained and push_to_hub call

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        settings: dict[str, Any] = {
            "generator": self.name, "settings": self.config.to_dict(), "trained_steps": self.trained_steps,
            "trained_with": self.trained_with, "calor_hf_version": __version__,
        }  # fmt: skip
        if self.class_names:
            settings["class_names"] = list(self.class_names)
        write_whole(save_directory / WEIGHTS_FILE, save(weights, metadata={"format": "pt"}))
        write_json(save_directory / CONFIG_FILE, settings, indent=2)
        card = save_directory / "README.md"  # ModelHubMixin writes none if there is one
        if card.is_file():
            text = read_text(card)
            now = _FACTS.sub(lambda _: self.facts(), text)
            if not text:  # left by a full disk
                card.unlink()
            elif now != text:
                write_whole(card, now.encode())

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return README.md of the generator; only its part with :meth:`facts` is replaced when it is saved again."""
        return ModelCard(f"---\nlibrary_name: calor_hf\n---\n# A prior of model inversion attacks\n{self.facts()}\n")

    def facts(self) -> str:
        """Return what the README says of the generator and its training."""
        lines = [f"`{self.name}` of {self.image_size} x {self.image_size} pixels, saved by calor_hf {__version__}."]
        if self.trained_steps is None:
            lines.append("Not trained by calor_hf.")
        else:
            done, planned = self.trained_steps
            state = "finished" if done >= planned else "**unfinished**"
            minutes = (self.trained_with or {}).get("minutes")
            sized = "" if minutes is None else f", at a size chosen for {minutes:g} minutes"
            lines.append(f"Training: {state}, {done:,} of {planned:,} steps{sized}.")
        if self.trained_with is not None:
            drawn, digest = self.trained_with.get("drawn"), self.trained_with.get("digest")
            kind = "synthetic faces drawn by calor_hf, which show no one" if drawn else "images of its author's own"
            named = f" (SHA-256 of the files: {digest})" if digest else ""
            lines.append(f"Trained on {self.trained_with.get('images', 0):,} {kind}{named}.")
        listed = "\n".join(f"- {line}" for line in lines)
        return f"<!-- calor_hf:begin prior -->\n{listed}\n<!-- calor_hf:end prior -->"

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """As of ``ModelHubMixin``; class names, which may be people's, stay here."""
        names, self.class_names = self.class_names, ()
        try:
            return str(super().push_to_hub(*args, **kwargs))
        finally:
            self.class_names = names

    @classmethod
    def load(cls, source: str, **options: Any) -> "Generator[Any]":
        """Load what another library saved, from ``NAME:SOURCE``.

        Raises:
            ValueError: the generator reads no other library's files, or ``source`` has none.
        """
        raise ValueError(f"the generator '{cls.name}' reads no files of other libraries; pass {source} alone")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Generator[Any]":
        return load_generator(model_id, **{k: options[k] for k in ("revision", "cache_dir", "token") if k in options})


def load_generator(source: str, image_size: int | None = None, **options: Any) -> "Generator[Any]":
    """A saved generator, of whatever kind, in evaluation mode.

    Args:
        source: Folder, Hub id, ``renderer`` for the drawn faces' own renderer, or ``diffusers:FOLDER_OR_ID`` for a
            pipeline of `diffusers`.
        image_size: Side of the images, of a generator that needs no training; a trained one has its own.
        options: ``revision``, ``cache_dir`` and ``token``, for the Hub.

    Raises:
        ValueError: ``source`` holds no generator of this library, or one of an unknown kind.
    """
    names = GENERATORS.names()
    if source in names and not Path(source).exists():
        kind = GENERATORS.get(source)
        made = kind(kind.config_class(**({} if image_size is None else {"image_size": image_size})))
        if any(True for _ in made.parameters()):
            raise ValueError(f"the generator '{source}' has to be trained (calor-hf prior); pass the folder of one")
        return made.eval()

    foreign, colon, place = source.partition(":")
    if colon and foreign in names:
        return GENERATORS.get(foreign).load(place, **options).eval()

    def file(name: str) -> Path:
        folder = Path(source)
        return folder / name if folder.is_dir() else Path(hf_hub_download(source, name, **options))

    try:
        saved = read_json(file(CONFIG_FILE), {"trained_steps?": list[int] | None, "trained_with?": dict | None})
    except (OSError, ValueError) as error:  # what is no name of a repository is a ValueError
        raise ValueError(
            f"no generator at {source} ({error}); train one with calor-hf prior, or pass renderer"
        ) from error
    if not isinstance(saved.get("generator"), str):
        raise ValueError(
            f"{source} is no generator of calor_hf: its config.json names none; train one with calor-hf prior"
        )
    if saved["generator"] not in names:
        raise ValueError(f"{source} is a generator '{saved['generator']}', known: {', '.join(names)}; update calor_hf")
    kind = GENERATORS.get(saved["generator"])
    try:
        generator = kind(kind.config_class.from_dict(saved["settings"]))
        generator.class_names = tuple(map(str, saved.get("class_names", ())))
        generator.load_state_dict(load_file(file(WEIGHTS_FILE)))
        if saved.get("trained_steps") is not None:
            done, planned = saved["trained_steps"]
            generator.trained_steps = done, planned
        generator.trained_with = saved.get("trained_with")
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the generator in {source} is damaged: its settings and weights do not fit ({error}); train it again"
        ) from error
    return generator.eval()


class _Named(Registry[Generator[Any]]):
    def register(self, name: str) -> Any:
        """Class decorator: make a class available under ``name``, and store the name in it."""
        enter = super().register(name)

        def decorate(cls: type[Generator[Any]]) -> type[Generator[Any]]:
            cls.name = name
            return enter(cls)

        return decorate


GENERATORS: Registry[Generator[Any]] = _Named("generator", "calor_hf.generators")


def up_channels(image_size: int, width: int, most: int, first: int) -> list[int]:
    """Channels from a ``first`` pixel wide map up to ``image_size``, halving at each doubling of the side.

    Args:
        image_size: Side in pixels, ``first`` times a power of two.
        width: Channels at the end.
        most: Doublings at most between the last and the first; larger images repeat the last.
        first: Side of the first map in pixels.

    Returns:
        One number per map, from the smallest map on.
    """
    doublings = (image_size // first).bit_length() - 1
    return [width * 2 ** max(0, min(doublings, most) - i) for i in range(doublings + 1)]


def check_side(image_size: int, least: int = 16) -> None:
    """Raise ``ValueError`` for a side that is no power of two from ``least`` on."""
    if image_size < least or image_size & (image_size - 1):
        raise ValueError(f"image_size must be a power of two, at least {least}, got {image_size}")
