"""Reconstruction error of an autoencoder by the width of its bottleneck."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from calor_hf.core.config import MethodConfig
from calor_hf.core.fit import fit, minibatches
from calor_hf.core.processes import process_state
from calor_hf.core.seeding import named_rng, torch_seed
from calor_hf.data.image_grid import image_grid
from calor_hf.data.public_images import labeled_pixels
from calor_hf.generators.dcgan import DCGAN, DCGANConfig
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.recipes.runs import markdown
from calor_hf.robustness import Share
from calor_hf.targets.frozen import frozen
from examples.paper.leakage import bars, of_share, with_interval
from examples.paper.study import STUDIES, Cell, Found, Study, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MILESTONES = (0.5, 0.75, 0.9)  # shares of the epochs after which the learning rate falls to a tenth
EXAMPLES = 4
BANDS = 8
"""Rings of spatial frequency, each 1/16 cycles a pixel wide; the last holds the corners, too."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderRankConfig(MethodConfig):
    """Settings of :class:`AutoencoderRank`."""

    ranks: tuple[int, ...] = field(
        default=(2, 4, 8, 16, 32, 64), metadata={"help": "Widths of the bottleneck, separated by commas."}
    )
    epochs: int = field(default=30, metadata={"help": "Epochs of training; the paper: 100."})
    lr: float = field(default=1e-3, metadata={"help": "Learning rate of Adam; the paper, for larger networks: 1e-4."})
    batch_size: int = field(default=32, metadata={"help": "Images per step."})
    width: int = field(default=16, metadata={"help": "Channels of the widest maps of encoder and decoder."})
    image_size: int = field(default=64, metadata={"help": "Side in pixels, a power of two."})
    training_seed: int = field(default=0, metadata={"help": "Seed of weights and order."})

    def validate(self) -> None:
        """Refuse values out of range."""
        DCGANConfig(image_size=self.image_size, width=self.width)
        if not self.ranks or min(*self.ranks, self.epochs, self.batch_size - 1) < 1 or self.lr <= 0:
            raise ValueError(
                "expected ranks and epochs >= 1, batch_size >= 2 and lr > 0, got "
                f"{self.ranks}, {self.epochs}, {self.batch_size} and {self.lr}"
            )


class Autoencoder(nn.Module):
    """Small ResNet encoder with ``rank`` outputs, and the generator of GMI as decoder.

    Args:
        rank: Width of the bottleneck.
        image_size: Side in pixels.
        width: Channels of the first encoder stage and of the last decoder stage.
    """

    def __init__(self, rank: int, image_size: int, width: int) -> None:
        super().__init__()
        sizes = [width * 2**level for level in range(4)]
        config = ResNetConfig(embedding_size=width, hidden_sizes=sizes, depths=[1, 1, 1, 1], layer_type="basic")
        self.body = ResNetModel(config)
        self.down = nn.Linear(sizes[-1], rank)
        self.decoder = DCGAN(DCGANConfig(image_size=image_size, latent_dim=rank, width=width, discriminator="none"))

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, 3, side, side) reconstructions in (0, 1) of images in [0, 1]."""
        code = self.down(self.body(pixel_values=2 * images - 1).pooler_output.flatten(1))
        rebuilt: Tensor = self.decoder(code)
        return rebuilt


@STUDIES.register("autoencoder_rank")
class AutoencoderRank(Study[AutoencoderRankConfig]):
    """Reconstruction error by bottleneck width, and accuracy of the evaluation model on the reconstructions."""

    config_class = AutoencoderRankConfig
    claim = "the narrower the bottleneck, the less of an image can be reconstructed"
    source = "autoencoder experiment, Figure 4a"
    caveat = (
        "Smaller than the paper's: a small ResNet from random weights instead of ResNet-50 from ImageNet, this "
        "library's synthetic faces or --dataset instead of CelebA. Synthetic faces are drawn from 37 numbers, so a "
        "wider bottleneck gains little."
    )
    needs = ("evaluation_model",)
    quick: ClassVar[dict[str, Any]] = {"ranks": (2, 4), "epochs": 1, "width": 4}
    size = (15.0, 4.4)

    def cells(self) -> list[Cell]:
        """One cell per width."""
        return [Cell(f"rank-{rank}", {"rank": rank}) for rank in sorted(set(self.config.ranks))]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train on training images and measure on test images."""
        config, lab = self.config, self.lab
        classify = lab.classifier(lab.evaluation_model)
        splits = lab.splits(config.image_size)
        train, _ = labeled_pixels(splits.train, config.image_size)
        test, labels = labeled_pixels(splits.test, config.image_size)
        net = autoencoder(train, cell.values["rank"], config)
        originals = test.float() / 255
        with frozen(net), torch.no_grad():
            rebuilt = torch.cat([net(some.to(process_state().device)).cpu() for some in originals.split(256)])
        mean = (train.double().mean(dim=0) / 255).float()
        correct = [topk_correct(classify(images), labels) > 0 for images in (rebuilt, originals)]
        power, whole = band_power(rebuilt), band_power(originals)
        rows = torch.arange(EXAMPLES) * (len(test) // EXAMPLES)
        shown = torch.cat([originals[rows], rebuilt[rows]])
        return {
            "mse": float(F.mse_loss(rebuilt.double(), originals.double())),
            "mse_of_mean_image": float((originals.double() - mean.double()).square().mean()),
            "power_kept": [one / full if full else 0.0 for one, full in zip(power, whole, strict=True)],
            "accuracy": Share.of(correct[0]).to_dict(),
            "accuracy_on_originals": Share.of(correct[1]).to_dict(),
            "test_images": len(test),
            # Images only of synthetic faces.
            "examples": base64.b64encode(image_grid(shown, EXAMPLES)).decode() if lab.embedded else None,
        }

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot error, accuracy and frequencies by the width, with example images of synthetic faces."""
        cells = records(found)
        shown = [cell for cell in cells if cell["numbers"]["examples"] is not None]
        parts: Any = figure.subfigures(1, 2, width_ratios=(3, 1)) if shown else (figure, None)
        charts, images = parts
        error, accuracy, spectrum = charts.subplots(1, 3)
        ranks = [cell["values"]["rank"] for cell in cells]
        error.plot(ranks, [cell["numbers"]["mse"] for cell in cells], "o-", label="reconstructed")
        error.axhline(cells[0]["numbers"]["mse_of_mean_image"], color="k", ls=":", label="mean training image")
        error.set_ylabel("mean squared error, pixels in [0, 1]")
        error.set_ylim(bottom=0)
        values, spans = bars([of_share(cell["numbers"]["accuracy"]) for cell in cells])
        accuracy.errorbar(ranks, values, yerr=spans, fmt="o-", capsize=3, label="reconstructed")
        accuracy.axhline(
            100 * cells[0]["numbers"]["accuracy_on_originals"]["value"], color="k", ls=":", label="originals"
        )
        accuracy.set_ylabel("evaluation model's accuracy (%)")
        accuracy.set_ylim(-3, 103)
        for cell in cells:
            spectrum.plot(range(BANDS), cell["numbers"]["power_kept"], label=f"r = {cell['values']['rank']}")
        spectrum.set_xlabel(f"spatial frequency (1/{2 * BANDS} cycles a pixel)")
        spectrum.set_ylabel("power, relative to the originals")
        spectrum.set_ylim(bottom=0)
        spectrum.grid(alpha=0.3)
        spectrum.legend(fontsize=8)
        for panel in (error, accuracy):
            panel.set_xscale("log", base=2)
            panel.set_xticks(ranks, [str(rank) for rank in ranks])
            panel.set_xlabel("width of the bottleneck (log scale)")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=9)
        if images is None:
            return
        import io

        from PIL import Image

        grids = [Image.open(io.BytesIO(base64.b64decode(cell["numbers"]["examples"]))) for cell in shown]
        panels = images.subplots(len(shown) + 1, 1)
        middle = grids[0].height // 2
        strips = [("original", grids[0].crop((0, 0, grids[0].width, middle)))]
        strips += [
            (f"r = {cell['values']['rank']}", grid.crop((0, middle + 1, grid.width, grid.height)))
            for cell, grid in zip(shown, grids, strict=True)
        ]
        for panel, (title, strip) in zip(panels, strips, strict=True):
            panel.imshow(strip)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        images.suptitle("test images (synthetic faces)", fontsize=10)

    @classmethod
    def table(cls, found: Found) -> str:
        """Return one row per width."""
        rows = []
        for cell in records(found):
            numbers = cell["numbers"]
            accuracy = with_interval(*of_share(numbers["accuracy"]))
            kept = " ".join(f"{share:.2f}" for share in numbers["power_kept"])
            rows.append([str(cell["values"]["rank"]), f"{numbers['mse']:.5f}", accuracy, kept])
        rows.append(["mean training image", f"{numbers['mse_of_mean_image']:.5f}", "-", "-"])
        rows.append(["originals", "0", with_interval(*of_share(numbers["accuracy_on_originals"])), "1"])
        head = ["width", "mean squared error on test images", "evaluation model's accuracy (%)",
                f"power kept in {BANDS} bands, low to high frequencies"]  # fmt: skip
        note = (
            "The paper prints a figure: the error falls with the width; its evaluation model has 96.44 % on the "
            "originals."
        )
        return f"{markdown(head, rows)}\n\n{note}"


def band_power(images: Tensor) -> list[float]:
    """Mean power of (n, channels, side, side) images in :data:`BANDS` rings of spatial frequency, lowest first.

    The mean of each channel is left out; the sum over all rings is the variance of the pixels.
    """
    varying = images.double() - images.double().mean(dim=(2, 3), keepdim=True)
    frequency = torch.fft.fftfreq(images.shape[-1])
    ring = (torch.hypot(frequency[:, None], frequency) * 2 * BANDS).long().clamp_max(BANDS - 1)
    power = torch.fft.fft2(varying, norm="forward").abs().square().mean(dim=(0, 1))
    return [float(power[ring == band].sum()) for band in range(BANDS)]


def autoencoder(images: Tensor, rank: int, config: AutoencoderRankConfig) -> Autoencoder:
    """Train an autoencoder with the mean squared error.

    Args:
        images: (n, 3, side, side) uint8, n >= 2.
        rank: Width of the bottleneck.
        config: Settings of the training.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    device = process_state().device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.training_seed, "examples/autoencoder_rank/weights"))
        net = Autoencoder(rank, config.image_size, config.width).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    at = [max(1, round(share * config.epochs)) for share in MILESTONES]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, at)
    net.train()

    def batches(epoch: int) -> Iterator[Tensor]:
        rng = named_rng(config.training_seed, "examples/autoencoder_rank/order", epoch)
        for rows in minibatches(len(images), config.batch_size, rng):
            yield images[rows].to(device).float() / 255

    fit(
        lambda batch: F.mse_loss(net(batch), batch), optimizer, batches, config.epochs,
        name="the autoencoder", schedule=schedule, rate_option="lr",
    )  # fmt: skip
    return net.eval()
