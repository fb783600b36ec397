"""Knowledge extraction: accuracy on private images of a network trained on reconstructions only."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.fit import fit, minibatches
from calor_hf.core.seeding import named_rng, torch_seed
from calor_hf.data.random_views import RandomView
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, mean_over_images
from calor_hf.metrics.image_similarity import check_images_of, resized_like

CROP_AND_FLIP = RandomView.crop((0.8, 1.0), flip_probability=0.5)
LAST_RATE = 1e-4
_BATCH = 128


def small_resnet(num_classes: int) -> nn.Module:
    """Randomly initialized ResNet of 14 layers and 0.7 million weights for images in [0, 1]."""
    from transformers import ResNetConfig, ResNetForImageClassification  # here, as it takes seconds to import

    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128], depths=[2, 2, 2], layer_type="basic", num_labels=num_classes
    )
    student: nn.Module = ResNetForImageClassification(config)
    return student


def train_student(
    images: Tensor, labels: Tensor, build: Callable[[int], nn.Module] = small_resnet, epochs: int = 75,
    batch_size: int = 32, learning_rate: float = 0.1, seed: int = 0, device: str = "cpu",
) -> nn.Module:  # fmt: skip
    """Train a classifier of the identities in ``images`` on these images only.

    SGD with momentum 0.9, weight decay 1e-4 and a cosine schedule to 1e-4; random crops of 80 to 100 % of the area, and
    flips. On a CPU the same seed gives the same student.

    Args:
        images: (n, 3, height, width) reconstructions in [0, 1], n >= 2.
        labels: (n,) int64; class i of the student is the i-th of them in ascending order.
        build: Builds a network for a number of classes, from images in [0, 1] to logits or an output with ``logits``.
        epochs: Passes over the images.
        batch_size: Largest number of images per step; the batches of an epoch have nearly equal size.
        learning_rate: Initial learning rate.
        seed: Seed of weights, order, crops and dropout.
        device: Device of the training.

    Returns:
        The student in evaluation mode.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    identities = labels.unique()
    classes = torch.searchsorted(identities, labels)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.enable_grad():
        # Weights and dropout draw from the global generator, which the caller gets back as it was.
        torch.manual_seed(torch_seed(seed, "metrics/knowledge_extraction/weights"))
        student = build(len(identities)).to(device).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=LAST_RATE)

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            rng = named_rng(seed, "metrics/knowledge_extraction/batches", epoch)
            for rows in minibatches(len(labels), batch_size, rng):
                numbers = torch.from_numpy(rng.random((len(rows), CROP_AND_FLIP.numbers)))
                yield CROP_AND_FLIP(images[rows], numbers).to(device), classes[rows].to(device)

        fit(
            lambda batch: F.cross_entropy(_logits(student, batch[0]), batch[1]), optimizer, batches, epochs,
            name="the student", schedule=schedule,
        )  # fmt: skip
    return student.eval()


def _logits(student: nn.Module, images: Tensor) -> Tensor:
    output: Any = student(images)
    logits: Tensor = getattr(output, "logits", output)
    return logits.float()


@torch.no_grad()
def recognized(student: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """(m,) float64, 1 if the student assigns an image of (m, 3, height, width) to its class, else 0."""
    device = next(student.parameters()).device
    choices = [_logits(student, batch.to(device)).argmax(dim=1).cpu() for batch in images.split(_BATCH)]
    return (torch.cat(choices) == classes).double()


@METRICS.register("knowledge_extraction")
class KnowledgeExtraction(Metric):
    """Accuracy on private images of a student trained on reconstructions only, averaged over several trainings.

    The authors' student is an ImageNet ResNet-50 at 224 pixels; ours is small and randomly initialized, so that nothing
    is downloaded, and classifies the attacked identities only. Pass ``build`` for the published setting. Private images
    are resized like the reconstructions.

    The settings are those of :func:`train_student`, and ``runs``, the number of trainings; ``seed`` is the seed of the
    first one, and the others count on. The defaults are the published ones.

    Source:
        Struppek et al., ICLR 2024, arXiv:2310.06549; LukasStruppek/Plug-and-Play-Attacks `knowledge_extraction`.
    """

    needs = ()
    by_image = False
    slow = True

    def __init__(
        self, build: Callable[[int], nn.Module] = small_resnet, epochs: int = 75, batch_size: int = 32,
        learning_rate: float = 0.1, runs: int = 3, seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        if min(epochs, batch_size - 1, runs) < 1:
            raise ValueError(
                f"expected epochs >= 1, batch_size >= 2 and runs >= 1, got {epochs}, {batch_size} and {runs}"
            )
        self.build, self.epochs, self.batch_size, self.learning_rate = build, epochs, batch_size, learning_rate
        self.runs, self.seed, self.device = runs, seed, device

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``knowledge_extraction`` on the training images, and ``…_held`` on held-out ones if there are any.

        The std is over trainings. NaN if a single identity was attacked, or without images of the attacked ones.
        """
        images, labels = evidence.images, evidence.labels
        check_images_of(labels, images=images)
        identities = labels.unique()
        sets = {"knowledge_extraction": (evidence.private_images, evidence.private_labels)}
        if evidence.held_images is not None and evidence.held_labels is not None:
            sets["knowledge_extraction_held"] = (evidence.held_images, evidence.held_labels)
        for shown_images, shown in sets.values():
            check_images_of(shown, images=shown_images)
        settings = self.build, self.epochs, self.batch_size, self.learning_rate
        seeds = range(self.seed, self.seed + self.runs) if len(identities) > 1 else ()
        students = [train_student(images, labels, *settings, seed, self.device) for seed in seeds]

        found = []
        for name, (shown_images, shown) in sets.items():
            known = torch.isin(shown, identities)
            empty = Measure(name, math.nan, "share", "leakage", len(labels), len(identities))
            if not students:
                found.append(empty.failed("a single person, which every student would name"))
            elif not known.any():
                found.append(empty.failed("no image of the attacked people to be evaluated on"))
            else:
                # A student has seen nothing but reconstructions, so the private images take their size.
                fitted = resized_like(shown_images[known], images)
                classes = torch.searchsorted(identities, shown[known])
                right = torch.stack([recognized(student, fitted, classes) for student in students])
                found.append(self._measure(empty, right, shown[known]))
        return found

    def _measure(self, empty: Measure, right: Tensor, shown: Tensor) -> Measure:
        note = (
            f"by {self.runs} students trained on {empty.images} reconstructions alone, on {len(shown)} private images; "
            f"chance is 1/{empty.identities} = {1 / empty.identities:.3g}"
        )
        # Students are averaged for each image first: the interval is over identities, the std over students.
        mean = mean_over_images(empty.name, empty.unit, empty.direction, right.mean(dim=0), shown, note)
        std = float(right.mean(dim=1).std()) if self.runs > 1 else math.nan
        return dataclasses.replace(mean, images=empty.images, std=std)
