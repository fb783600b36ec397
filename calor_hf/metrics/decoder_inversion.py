"""Decoder inversion: error of images reconstructed from the target's outputs by a trained decoder."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.fit import fit, minibatches
from calor_hf.core.report_text import percent
from calor_hf.core.seeding import named_rng, torch_seed
from calor_hf.heads.classifier_head import heads_of
from calor_hf.metrics.base import METRICS, Direction, Evidence, Measure, Metric, check_rows, mean_over_images
from calor_hf.metrics.image_similarity import check_images_of, resized_like
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen
from calor_hf.targets.head_modes import OwnNoise

CODES = ("logits", "code", "features")
_BATCH = 128


@torch.no_grad()
def released(target: Target, images: Tensor) -> dict[str, Tensor]:
    """Outputs of a target for images, one row per image, in float32 on the CPU.

    A stochastic target gets the same noise in every call.

    Args:
        target: The model; its modes and weights stay as they are.
        images: (n, 3, height, width) in [0, 1], n >= 1.

    Returns:
        ``logits`` (n, classes), ``features`` (n, d) entering its head, and, if all of its heads are low-rank, ``code``
        (n, r) entering their last layers.
    """
    heads = heads_of(target.head) if isinstance(target.head, nn.Module) else []
    # Noise of its own, so that a stochastic target gives the same outputs in every call.
    rng = named_rng(0, "metrics/decoder_inversion/noise")

    def noise(rows: int, columns: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((rows, columns)))

    found: dict[str, list[Tensor]] = {}
    with frozen(target.module), OwnNoise(noise):
        for batch in images.split(_BATCH):
            features = target.features(batch.to(target.device, target.dtype))
            outputs = {"logits": target.head(features), "features": features}
            if heads and all(hasattr(head, "code") for head in heads):
                outputs["code"] = target.head.code(features)  # type: ignore[attr-defined]
            for name, values in outputs.items():
                found.setdefault(name, []).append(values.flatten(1).float().cpu())
    return {name: torch.cat(values) for name, values in found.items()}


class Decoder(nn.Module):
    """Decoder from codes to images by upsampling from 4 × 4 pixels; untrained, it returns the mean image.

    Args:
        codes: (n, width) training codes, n >= 2, by which inputs are standardized; constant columns are ignored.
        images: (n, 3, height, width) in [0, 1], their images.
        channels: Channels of the largest maps; smaller maps have up to four times as many.
    """

    code_mean: Tensor
    code_scale: Tensor
    mean_logits: Tensor

    def __init__(self, codes: Tensor, images: Tensor, channels: int = 16) -> None:
        super().__init__()
        self.size = tuple(images.shape[-2:])
        doublings = max(0, (max(self.size) - 1).bit_length() - 2)
        widths = [channels * min(2**level, 4) for level in reversed(range(doublings + 1))]
        self.first = nn.Linear(codes.shape[1], widths[0] * 16)
        self.blocks = nn.Sequential(*[_up(a, b) for a, b in pairwise(widths)])
        self.last = nn.Conv2d(widths[-1], 3, 3, padding=1)
        # From zero, so that an untrained decoder returns the mean image, which is the chance level.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        scale = codes.std(dim=0)
        # A feature that is constant on public images may vary on private ones, by any number of deviations.
        scale = torch.where(scale > 1e-6 * scale.max(), scale, math.inf)
        self.register_buffer("code_mean", codes.mean(dim=0))
        self.register_buffer("code_scale", scale)
        # eps, as a pixel that is black or white in all images has an infinite logit.
        self.register_buffer("mean_logits", images.mean(dim=0).logit(eps=1e-3))

    def forward(self, codes: Tensor) -> Tensor:
        """(batch, 3, height, width) in (0, 1) from (batch, width)."""
        x = self.first((codes - self.code_mean) / self.code_scale)
        x = self.last(self.blocks(x.view(len(x), -1, 4, 4)))
        x = F.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        return (x + self.mean_logits).sigmoid()


def _up(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(nn.Upsample(scale_factor=2), conv, nn.BatchNorm2d(outputs), nn.ReLU())


def train_decoder(
    codes: Tensor, images: Tensor, epochs: int = 30, batch_size: int = 32, learning_rate: float = 2e-3, seed: int = 0
) -> Decoder:
    """Train a decoder on public images by mean squared error.

    Adam with a cosine schedule to 0. A tenth of the images is held out: the result is the decoder of the epoch with the
    least error on them, the untrained one included. On a CPU the same seed gives the same decoder.

    Args:
        codes: (n, width) of the images, n >= 3.
        images: (n, 3, height, width) in [0, 1].
        epochs: Passes over the images.
        batch_size: Largest number of images per step.
        learning_rate: Initial learning rate.
        seed: Seed of weights, order and held-out tenth.

    Returns:
        The decoder in evaluation mode.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    order = torch.from_numpy(named_rng(seed, "metrics/decoder_inversion/split").permutation(len(codes)))
    held, rows = order.split([max(1, len(order) // 10), len(order) - max(1, len(order) // 10)])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(torch_seed(seed, "metrics/decoder_inversion/weights"))
        decoder = Decoder(codes[rows], images[rows])
        optimizer = torch.optim.Adam(decoder.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        best, state = _mean_error(decoder, codes[held], images[held]), copy.deepcopy(decoder.state_dict())

        def batches(epoch: int) -> Iterator[Tensor]:
            decoder.train()
            rng = named_rng(seed, "metrics/decoder_inversion/order", epoch)
            for batch in minibatches(len(rows), batch_size, rng):
                yield rows[batch]

        def keep_best(_epoch: int, _loss: float) -> None:
            nonlocal best, state
            # On images that were held out, as a decoder can learn a few public ones by heart.
            error = _mean_error(decoder, codes[held], images[held])
            if error < best:
                best, state = error, copy.deepcopy(decoder.state_dict())

        fit(
            lambda batch: F.mse_loss(decoder(codes[batch]), images[batch]), optimizer, batches, epochs,
            name="the decoder", schedule=schedule, callback=keep_best,
        )  # fmt: skip
    decoder.load_state_dict(state)
    return decoder.eval()


def _mean_error(decoder: Decoder, codes: Tensor, images: Tensor) -> float:
    return float(decoding_errors(decoder.eval(), codes, images).mean())


@torch.no_grad()
def decoding_errors(decoder: Decoder, codes: Tensor, images: Tensor) -> Tensor:
    """(n,) float64 mean squared error of the pixels of each image."""
    pairs = zip(codes.split(_BATCH), images.split(_BATCH), strict=True)
    return torch.cat([(decoder(some).double() - shown.double()).square().mean(dim=(1, 2, 3)) for some, shown in pairs])


def decoder_inversion(
    ask: Callable[[Tensor], dict[str, Tensor]], public_images: Tensor, private_images: Tensor, private_labels: Tensor,
    codes: Sequence[str] = CODES, epochs: int = 30, seed: int = 0,
) -> list[Measure]:  # fmt: skip
    """Error of private images reconstructed by decoders that were trained on public images only.

    Args:
        ask: Outputs of the target for (n, 3, height, width) images, by name, as :func:`released` gives them.
        public_images: (p, 3, height, width) in [0, 1], p >= 3; resized like the private ones.
        private_images: (m, 3, height, width) in [0, 1], preferably images that the target was not trained on.
        private_labels: (m,) int64.
        codes: Names of the outputs to invert; those that the target does not give are left out.
        epochs: Passes over the public images.
        seed: Seed of the decoders.

    Returns:
        ``decoder_inversion_chance``, the error of the mean public image, independent of the private one; then
        ``decoder_inversion_logits``, ``…_code`` and ``…_features``. All in squares of pixels in [0, 1].

    Raises:
        ValueError: images not in [0, 1], too few images, or outputs that are not one finite row per image.
        FloatingPointError: a decoder diverged.
    """
    public_rows = torch.arange(len(public_images))
    check_images_of(private_labels, private_images=private_images)
    if len(public_images) < 3:
        raise ValueError(f"expected three public images or more to learn from, got {len(public_images)}")
    check_images_of(public_rows, public_images=public_images)
    public = resized_like(public_images, private_images)
    learned, asked = ask(public), ask(private_images)
    for name in learned:
        check_rows(public_rows, **{f"{name} of public images": learned[name]})
        check_rows(private_labels, **{f"{name} of private images": asked[name]})

    def measure(name: str, errors: Tensor, direction: Direction, note: str) -> Measure:
        title, unit = f"decoder_inversion_{name}", "mean squared error"
        return mean_over_images(title, unit, direction, errors, private_labels, note, slots=False)

    # Of the public images: the mean of private ones would tell something about them.
    mean = public.double().mean(dim=0)
    chance = (private_images.double() - mean).square().mean(dim=(1, 2, 3))
    shown = f"{len(private_labels)} private images, rebuilt by decoders trained on {len(public)} public ones"
    found = [measure("chance", chance, "neither", f"the mean public image instead of each of {shown}")]
    for name in codes:
        if name in learned:
            decoder = train_decoder(learned[name], public, epochs=epochs, seed=seed)
            errors = decoding_errors(decoder, asked[name], private_images)
            left = float(errors.mean() / chance.mean()) if chance.mean() > 0 else math.nan
            note = f"{percent(left, 0)} of the chance level; from {learned[name].shape[1]} numbers per image; {shown}"
            found.append(measure(name, errors, "privacy", note))
    return found


@METRICS.register("decoder_inversion")
class DecoderInversion(Metric):
    """Error of held-out private images of the attacked identities, reconstructed from the target's outputs for them.

    It measures how much of an image is in an output: in the logits, in the ``code`` of a low-rank head after its Tanh,
    or in the features before that head. It is independent of attacks. The least error of any decoder is that of the
    mean image given the output; a trained decoder approaches it from above.

    The later version of the CALoR paper, "Rank Matters" (arXiv:2410.05814v3), states that an ideal inversion error
    falls with the rank of the features. Its definition was not available; this is another number with that property.

    The settings are those of :func:`decoder_inversion`.

    Source:
        Dosovitskiy and Brox, CVPR 2016, arXiv:1506.02753, for decoders of a classifier's features.
    """

    needs = ("ask", "public_images", "held_images", "held_labels")
    by_image = False
    about_target = True
    slow = True

    def __init__(self, codes: Sequence[str] = CODES, epochs: int = 30, seed: int = 0) -> None:
        unknown = sorted(set(codes) - set(CODES))
        if unknown or epochs < 1:
            raise ValueError(f"expected codes of {', '.join(CODES)} and epochs >= 1, got {', '.join(codes)}; {epochs}")
        self.codes, self.epochs, self.seed = tuple(codes), epochs, seed

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``decoder_inversion_chance`` and a number per code; NaN without held-out images of these identities."""
        ask, public, held, shown = self.require(evidence)
        check_images_of(shown, held_images=held)
        known = torch.isin(shown, evidence.labels)
        if not known.any():
            empty = Measure("decoder_inversion_chance", math.nan, "mean squared error", "neither", 0, 0)
            return [empty.failed("no held-out image of the attacked people")]
        return decoder_inversion(ask, public, held[known], shown[known], self.codes, self.epochs, self.seed)
