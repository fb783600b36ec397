"""Students that imitate the target on public images: LOMMA attacks both, other attacks only the students."""

import copy
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from calor_hf.attacks.queries import Queries
from calor_hf.core.files import saving, write_json, write_whole
from calor_hf.core.fit import fit
from calor_hf.core.plain_text import without_paths
from calor_hf.core.processes import process_state
from calor_hf.core.progress import ProgressBar
from calor_hf.core.seeding import Key, named_rng, torch_seed
from calor_hf.targets.base import LabelTarget, Target
from calor_hf.targets.frozen import frozen
from calor_hf.targets.hf_target import HFTarget

logger = logging.getLogger(__name__)

RECORD, LABELS = "distillation.json", "labels.safetensors"

# Width, depth and last width of Tan and Le's compound scaling.
EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 1.0, 1280),
    "efficientnet_b1": (1.0, 1.1, 1280),
    "efficientnet_b2": (1.1, 1.2, 1408),
}
# Blocks of each stage, and widths, of He et al.'s networks.
RESNETS: dict[str, dict[str, Any]] = {
    "resnet_10": {"depths": [1, 1, 1, 1], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet_18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet_34": {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet_50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
}

TARGET = "target"
"""Name of a student that is a copy of the target."""
STEPS = 5  # of an adversarial example


@dataclass(frozen=True)
class StudentPlan:
    """How students are trained: SGD with momentum 0.9 and weight decay 1e-4.

    Attributes:
        epochs: Over all images.
        lr: Learning rate, halved every ``halving`` epochs; with hard labels, it decays to 0 along a cosine.
        batch_size: Images per step.
        seed: Seed of weights and order.
        hard: Cross-entropy with the target's labels, each queried once; otherwise divergence from its scores.
        halving: Epochs after which the rate halves.
        eps: Maximum change of a value in [0, 1] in the adversarial examples to train on; 0 means none.
    """

    epochs: int
    lr: float
    batch_size: int
    seed: int
    hard: bool = False
    halving: int = 20
    eps: float = 0.0


def students_of(
    target: Any, names: tuple[str, ...], images: Dataset[Tensor], plan: StudentPlan, folder: Path
) -> list[Target]:
    """Return frozen students of ``target``, trained or loaded from ``folder``.

    Args:
        target: The teacher; for hard labels its :class:`LabelTarget` will do.
        names: For each student a name in :data:`EFFICIENTNETS` or :data:`RESNETS` (random weights), a Hub id or a
            folder; :data:`TARGET` is a copy of the target with its weights.
        images: Public images in [0, 1].
        plan: Settings of the training.
        folder: One sub-folder per student.

    Raises:
        ValueError: an unknown student name.
    """
    state = process_state()
    labels = None
    if plan.hard:
        with state.local_main_process_first():
            labels = _labels(target, images, plan.seed, folder / LABELS)
    students: list[Target] = []
    for index, name in enumerate(names):
        place = folder / str(index)
        with state.local_main_process_first():
            # Each process of a node could train its own; the first one does, and the others read what it saved.
            if not (place / RECORD).is_file():
                if not state.is_local_main_process:
                    raise FileNotFoundError(f"the student in {place} was not saved by the first process")
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(torch_seed(plan.seed, "attacks/students/weights", index))
                    student = _fresh(name, target)
                _train(student, target, labels, images, plan, place, name)
            model = AutoModelForImageClassification.from_pretrained(place)
        model.to(target.device).requires_grad_(False)
        students.append(_view(model, name, target))
    return students


def _labels(target: LabelTarget, images: Dataset[Tensor], seed: int, file: Path) -> Tensor:
    """(images,) labels of the target, queried or read from ``file``; both count as queries, once."""
    if file.is_file():
        labels = load(file.read_bytes())["labels"]
        target.queries += len(labels)  # asked by another process, or before the run was stopped
        return labels
    queries, answers = Queries(target, None, seed), []
    for start, batch in enumerate(DataLoader(images, batch_size=256)):
        rows: list[Key] = [("distillation", start, place) for place in range(len(batch))]
        answers.append(queries.ask(batch.to(target.device), rows, 0).cpu())
    labels = torch.cat(answers)
    write_whole(file, save({"labels": labels}))
    return labels


def _view(student: PreTrainedModel, name: str, target: Any) -> HFTarget:
    processor = getattr(target, "processor", None) if name == TARGET else None
    return HFTarget(student, processor, image_size=target.image_size[0])


def _fresh(name: str, target: Any) -> PreTrainedModel:
    side, classes = target.image_size[0], target.num_classes
    if name == TARGET:
        if not isinstance(getattr(target, "module", None), PreTrainedModel):
            raise ValueError(
                "only a model of transformers, seen white-box, can be copied as a student, got "
                f"{type(target).__name__}; pass other students"
            )
        twin: PreTrainedModel = copy.deepcopy(target.module).float().requires_grad_(True)
        for config in (twin.config, getattr(twin.config, "base_config", None)):
            if config is not None:
                config.id2label = {index: f"LABEL_{index}" for index in range(classes)}  # names may name people
                config.label2id = {name: index for index, name in config.id2label.items()}
        return twin
    if name in EFFICIENTNETS:
        width, depth, last = EFFICIENTNETS[name]
        config = EfficientNetConfig(
            width_coefficient=width, depth_coefficient=depth, hidden_dim=last, image_size=side, num_labels=classes
        )
        return EfficientNetForImageClassification(config)
    if name in RESNETS:
        return ResNetForImageClassification(ResNetConfig(num_labels=classes, **RESNETS[name]))
    try:
        numbered = {index: f"LABEL_{index}" for index in range(classes)}  # its class names may name people
        config = AutoConfig.from_pretrained(name, id2label=numbered, label2id={v: k for k, v in numbered.items()})
        model: PreTrainedModel = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        known = ", ".join([*EFFICIENTNETS, *RESNETS])
        raise ValueError(
            f"no student model {name!r} ({error}); pass {known}, the folder of an image classifier, or a Hub id"
        ) from error
    return model


def _train(
    student: PreTrainedModel, teacher: Any, labels: Tensor | None, images: Dataset[Tensor], plan: StudentPlan,
    folder: Path, name: str,
) -> None:  # fmt: skip
    """Train ``student`` on the teacher's scores, or on ``labels`` (images,) if given, and save it."""
    device = teacher.device
    student.to(device).train()
    view = _view(student, name, teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=plan.lr, momentum=0.9, weight_decay=1e-4)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if plan.hard:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=plan.epochs)
    else:
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=plan.halving, gamma=0.5)
    file, first, divergence = folder / "checkpoint.pt", 0, math.nan
    settings = {"student": name, **asdict(plan)}
    if file.is_file():
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if saved["settings"] == settings:
            student.load_state_dict(saved["student"])
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
            first, divergence = saved["epoch"], saved["divergence"]
    count = len(images)  # type: ignore[arg-type]

    def batches(epoch: int) -> Iterator[tuple[Tensor, list[int]]]:
        order = named_rng(plan.seed, "attacks/students/order", epoch).permutation(count).tolist()
        # A last batch of one image has no batch statistics.
        loader = DataLoader(Subset(images, order), batch_size=plan.batch_size, drop_last=count % plan.batch_size == 1)
        student.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(torch_seed(plan.seed, "attacks/students/dropout", epoch))
            for step, batch in enumerate(loader):
                yield batch.to(device), order[step * plan.batch_size :][: len(batch)]

    def loss(batch: tuple[Tensor, list[int]]) -> Tensor:
        shown, rows = batch
        if labels is not None:
            aim = labels[rows].to(device)
        else:
            # Evaluation mode and no graph: MIBench leaves the teacher in training mode and inside autograd, by mistake.
            with torch.no_grad(), frozen(teacher.module):
                aim = teacher(shown.to(teacher.dtype)).float().softmax(dim=1)

        def distance(images: Tensor) -> Tensor:
            found = view(images.to(student.dtype)).float().log_softmax(dim=1)
            if labels is not None:
                return F.nll_loss(found, aim)
            # batchmean is the divergence of an image; mean would divide it by the number of classes as well.
            return F.kl_div(found, aim, reduction="batchmean")

        return distance(_worst(distance, shown, plan.eps) if plan.eps else shown)

    def save_epoch(epoch: int, last: float) -> None:
        nonlocal divergence
        divergence = last
        content = {
            "student": student.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch + 1,
            "divergence": divergence,
            "settings": settings,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(file, buffer.getvalue())
        bar.update()

    with ProgressBar(initial=first, total=plan.epochs, desc=f"student {name}", unit="epoch") as bar:
        fit(
            loss, optimizer, batches, plan.epochs, name=f"the student {name}", schedule=schedule, callback=save_epoch,
            first_epoch=first, rate_option="student_lr",
        )  # fmt: skip
    measure = "cross-entropy %.3f nats to the target's labels" if plan.hard else "divergence %.3f nats from the target"
    logger.info(f"student %s: {measure}", name, divergence)
    with saving(folder):
        student.eval().save_pretrained(folder)
    # Last, as its presence says that the student is complete.
    write_json(folder / RECORD, {**settings, "student": without_paths(name), "divergence": divergence})
    file.unlink()


def _worst(loss: Callable[[Tensor], Tensor], images: Tensor, eps: float) -> Tensor:
    """Images in [0, 1] within ``eps`` of ``images`` that raise the loss: PGD from a random start."""
    found = (images + eps * (2 * torch.rand(images.shape).to(images) - 1)).clamp(0, 1)
    for _ in range(STEPS):
        found.requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(found), found)
        found = found.detach() + 2.5 * eps / STEPS * slope.sign()
        found = found.clamp(images - eps, images + eps).clamp(0, 1)
    return found


class Students(Target):
    """Several networks as one target: the features are their logits side by side, the scores come from the mean.

    Attributes:
        module: All of them.
        students: The individual networks.
        count: Number of networks.
    """

    def __init__(self, students: Sequence[Target]) -> None:
        self.students, self.count = students, len(students)
        self.module = torch.nn.ModuleList([student.module for student in students])
        self.num_classes, self.image_size = students[0].num_classes, students[0].image_size
        self.head: Callable[[Tensor], Tensor] = self._mean

    def features(self, images: Tensor) -> Tensor:
        """(batch, students · classes) logits."""
        return torch.cat([student(images) for student in self.students], dim=1)

    def _mean(self, features: Tensor) -> Tensor:
        return features.view(len(features), self.count, -1).mean(dim=1)
