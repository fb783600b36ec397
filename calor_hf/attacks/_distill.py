"""Students that imitate the target on public images; what LOMMA looks through besides the target."""

import io
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    PreTrainedModel,
)

from calor_hf.core.files import write_whole
from calor_hf.core.processes import process_state
from calor_hf.core.seeding import sample_rng
from calor_hf.core.target import Target
from calor_hf.generators import Generator
from calor_hf.layers.frozen import frozen
from calor_hf.layers.hf_target import HFTarget

logger = logging.getLogger(__name__)

RECORD = "distillation.json"

# Width, depth and last width of Tan and Le's compound scaling.
EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 1.0, 1280),
    "efficientnet_b1": (1.0, 1.1, 1280),
    "efficientnet_b2": (1.1, 1.2, 1408),
}


@dataclass(frozen=True)
class StudentPlan:
    """How students are trained: SGD with momentum 0.9 and weight decay 1e-4, the rate halved every 20 epochs."""

    epochs: int
    lr: float
    batch_size: int
    seed: int


class Drawn(Dataset[Tensor]):
    """Samples of a generator in the place of public images.

    Args:
        target: For device and number of classes.
        generator: The prior.
        count: Number of images.
        seed: Of the latents.
    """

    def __init__(self, target: Target, generator: Generator[Any], count: int, seed: int) -> None:
        rng = sample_rng(seed, count, 2)
        images = []
        with frozen(generator), torch.no_grad():
            for _ in range(math.ceil(count / 250)):
                latents = generator.sample_latents(250, rng).to(target.device, generator.dtype)
                labels = torch.from_numpy(rng.integers(0, target.num_classes, 250)).to(target.device)
                images.append((generator(latents, labels).clamp(0, 1) * 255).round().byte().cpu())
        self.images = torch.cat(images)[:count]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index].float() / 255


def students_of(
    target: Target, names: tuple[str, ...], images: Dataset[Tensor], plan: StudentPlan, folder: Path
) -> list[Target]:
    """Students of ``target``, trained or found in ``folder``, frozen.

    Each process of a node could train its own; the first one does, and the others read what it saved.

    Args:
        target: The teacher.
        names: A name of :data:`EFFICIENTNETS` (random weights), a Hub id or a folder, each.
        images: Public images in [0, 1].
        plan: Of the training.
        folder: One sub-folder a student.

    Raises:
        ValueError: a name that is none of these.
    """
    state = process_state()
    students: list[Target] = []
    for index, name in enumerate(names):
        place = folder / str(index)
        with state.local_main_process_first():
            if not (place / RECORD).is_file():
                if not state.is_local_main_process:
                    raise FileNotFoundError(f"the student in {place} was not saved by the first process")
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(plan.seed + index)
                    student = _fresh(name, target)
                _train(student, target, images, plan, place, name)
            model = AutoModelForImageClassification.from_pretrained(place)
        model.to(target.device).requires_grad_(False)
        students.append(HFTarget(model, image_size=target.image_size[0]))
    return students


def _fresh(name: str, target: Target) -> PreTrainedModel:
    side, classes = target.image_size[0], target.num_classes
    if name in EFFICIENTNETS:
        width, depth, last = EFFICIENTNETS[name]
        config = EfficientNetConfig(
            width_coefficient=width, depth_coefficient=depth, hidden_dim=last, image_size=side, num_labels=classes
        )
        return EfficientNetForImageClassification(config)
    try:
        config = AutoConfig.from_pretrained(name, num_labels=classes)
        model: PreTrainedModel = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        known = ", ".join(EFFICIENTNETS)
        raise ValueError(
            f"no student model {name!r} ({error}); pass {known}, the folder of an image classifier, or a Hub id"
        ) from error
    return model


def _train(
    student: PreTrainedModel, teacher: Target, images: Dataset[Tensor], plan: StudentPlan, folder: Path, name: str
) -> None:
    device = teacher.device
    student.to(device).train()
    view = HFTarget(student, image_size=teacher.image_size[0])
    optimizer = torch.optim.SGD(student.parameters(), lr=plan.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    file, first, divergence = folder / "checkpoint.pt", 0, math.nan
    settings = {"student": name, **asdict(plan)}
    if file.is_file():
        saved = torch.load(file, map_location=device, weights_only=True)
        if saved["settings"] == settings:
            student.load_state_dict(saved["student"])
            optimizer.load_state_dict(saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])
            first, divergence = saved["epoch"], saved["divergence"]
    count = len(images)  # type: ignore[arg-type]
    for epoch in tqdm(
        range(first, plan.epochs), initial=first, total=plan.epochs, desc=f"student {name}", unit="epoch"
    ):
        order = sample_rng(plan.seed, epoch, 0, 0, 0).permutation(count).tolist()
        # A last batch of one image has no batch statistics.
        loader = DataLoader(Subset(images, order), batch_size=plan.batch_size, drop_last=count % plan.batch_size == 1)
        student.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(sample_rng(plan.seed, epoch, 0, 0, 1).integers(2**62)))  # for dropout
            for batch in loader:
                x = batch.to(device, teacher.dtype)
                with torch.no_grad(), frozen(teacher.module):
                    soft = teacher(x).float().softmax(dim=1)
                loss = F.kl_div(view(x.to(student.dtype)).float().log_softmax(dim=1), soft, reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        schedule.step()
        divergence = float(loss.detach())
        if not math.isfinite(divergence):
            raise FloatingPointError(f"the student {name} diverged in epoch {epoch + 1}; lower student_lr")
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
    logger.info("student %s: divergence %.3f nats from the target", name, divergence)
    student.eval().save_pretrained(folder)
    write_whole(folder / RECORD, json.dumps({**settings, "divergence": divergence}).encode())  # last: all is there
    file.unlink()
