"""Training a prior: one loop for all of them, on `accelerate`, that can be stopped and resumed."""

import copy
import io
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from calor_hf._version import __version__
from calor_hf.core.digests import network_digest
from calor_hf.core.files import check_writable, remove_parts, saving, write_json, write_whole
from calor_hf.core.finishing import Finishing
from calor_hf.core.processes import check_logger, process_state
from calor_hf.core.progress import ProgressBar
from calor_hf.core.seeding import named_rng, torch_seed
from calor_hf.core.stop_request import StopRequest, leave_interrupts_to_parent
from calor_hf.data.image_grid import image_grid
from calor_hf.data.public_images import PublicImages
from calor_hf.generators import Generator
from calor_hf.priors.base import PriorTraining, TrainDraws
from calor_hf.priors.folder import CHECKPOINT, LOGS, RECORD, SAMPLES, clear, refuse_used
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

logger = logging.getLogger(__name__)

_SAVED = ("published", "generator", "optimizer", "discriminator_optimizer")


def train_prior(
    training: PriorTraining[Any],
    images: Dataset[Tensor],
    output_dir: str | Path,
    *,
    target: Target | None = None,
    seed: int = 0,
    save_steps: int = 500,
    num_workers: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    minutes: float | None = None,
    device: str | torch.device | None = None,
    report_to: str | None = None,
) -> Generator[Any]:
    """Train a generator on public images and save it, with sample grids and a record, in ``output_dir``.

    Under ``accelerate launch`` the batch is shared by the processes; batch norm sees each process's share alone.

    Args:
        training: Kind and settings of the training.
        images: Public images, (3, side, side) each, in [0, 1].
        output_dir: Folder of the generator, the samples, and the checkpoint that ``resume`` reads.
        target: The model under attack, for the priors that ask it; its weights stay as they are.
        seed: Seed of weights and draws; a run that was stopped and resumed gives the same result.
        save_steps: Updates of the generator between checkpoints, each with a grid of samples.
        num_workers: Processes that load images.
        resume: Go on from the checkpoint in ``output_dir``, if there is one.
        overwrite: Delete an earlier prior in ``output_dir`` first.
        minutes: Budget that the size was chosen for (:func:`~calor_hf.priors.size_for`), for the record.
        device: Device to train on; None means the one that `accelerate` chooses.
        report_to: Logger of the losses, such as ``tensorboard`` (files in ``output_dir/runs``), ``trackio`` or
            ``wandb``. None means none.

    Returns:
        The generator in evaluation mode, of a prior that keeps a running mean of its weights that one; in every
        process.

    Raises:
        ValueError: no target for a prior that asks one, too few or non-square images, a batch that the processes
            cannot share, a checkpoint of other settings, or a logger that is not installed.
        FileExistsError: ``output_dir`` holds files, and they are neither to be resumed nor overwritten.
        FloatingPointError: a loss is not finite; the last checkpoint is kept.
        FinishingError: samples could not be drawn; the checkpoint is written.
        KeyboardInterrupt: stopped on request, after a checkpoint.
    """
    from accelerate import Accelerator

    check_logger(report_to)
    folder, cpu = Path(output_dir), process_state(device).device.type == "cpu"
    accelerator = Accelerator(cpu=cpu, log_with=report_to, project_dir=folder / LOGS)
    side = _check(training, images, target, accelerator.num_processes)
    if accelerator.is_main_process and not overwrite:
        refuse_used(folder, resume)

    torch.manual_seed(torch_seed(seed, "priors/weights"))
    generator = training.build(side, target).to(accelerator.device)
    known = (images.drawn, images.digest) if isinstance(images, PublicImages) else (False, None)
    generator.trained_with = {"images": len(images), "drawn": known[0], "digest": known[1], "minutes": minutes}  # type: ignore[arg-type]
    if target is not None and generator.num_classes is not None:
        generator.class_names = tuple(target.class_names)
    if target is not None:
        target.module.to(accelerator.device)
    data: Any = training.data(images, target)
    count = training.config.batch_size * training.batches_per_update
    if len(data) < count:
        raise ValueError(
            f"expected at least {count} training images for a batch, got {len(data)}; lower batch_size, or pass more"
        )
    if accelerator.is_main_process:
        if overwrite:
            clear(folder)
        check_writable(folder)
        remove_parts(folder)
    accelerator.wait_for_everyone()
    state = _State(training, generator, seed, folder, target)
    if resume:
        state.load()
    first = state.step * training.reads_per_step
    batches = _EndlessBatches(len(data), count, seed, first, accelerator.process_index, accelerator.num_processes)
    loader = iter(
        DataLoader(data, batch_sampler=batches, num_workers=num_workers, worker_init_fn=leave_interrupts_to_parent)
    )
    total, hidden = training.config.steps, not accelerator.is_main_process
    bar = ProgressBar(total=total, initial=state.step, desc="prior", unit="step", disable=hidden)
    modules = [target.module] if target is not None else []
    begin = time.perf_counter()
    stop = StopRequest("saving after this step", active=accelerator.num_processes == 1)
    with frozen(*modules), stop, bar, _logging(accelerator, report_to):
        while state.step < total:
            losses = state.update(target, loader, accelerator)
            bar.update()
            due = state.step % save_steps == 0 or state.step == total or stop.requested
            if due or state.step % 20 == 0:
                accelerator.log(state.note(losses, bar), step=state.step)
            if due:
                state.seconds, begin = state.seconds + time.perf_counter() - begin, time.perf_counter()
                _mean_over_processes(state.buffers(), accelerator)
                if accelerator.is_main_process:
                    state.save()
            if stop.requested:
                raise KeyboardInterrupt(f"stopped at step {state.step}; go on with resume")
    accelerator.wait_for_everyone()
    return state.published.eval()


@contextmanager
def _logging(accelerator: Any, report_to: str | None) -> Iterator[None]:
    if report_to is not None:
        accelerator.init_trackers("calor-hf-prior")
    try:
        yield
    finally:  # not end_training, which ends the processes' group too
        for tracker in accelerator.trackers:
            tracker.finish()


def _descend(terms: dict[str, Tensor], optimizer: Any, weights: list[nn.Parameter], accelerator: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    # Averaged by hand: DistributedDataParallel does not follow the gradient penalty's gradient of a gradient.
    _mean_over_processes([weight.grad for weight in weights if weight.grad is not None], accelerator)
    optimizer.step()


@torch.no_grad()
def _mean_over_processes(values: list[Tensor], accelerator: Any) -> None:
    if accelerator.num_processes == 1 or not values:
        return
    flat = accelerator.reduce(torch.cat([value.flatten() for value in values]), "mean")
    for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


class _State:
    """Networks, optimizers and history: the content of a checkpoint."""

    def __init__(
        self, training: PriorTraining[Any], generator: Generator[Any], seed: int, folder: Path, target: Target | None
    ) -> None:  # fmt: skip
        config = training.config
        rival = getattr(generator, "discriminator", None)
        opposed = [] if rival is None else list(rival.parameters())
        discriminator = {id(weight) for weight in opposed}
        self.training, self.generator, self.folder, self.seed = training, generator, folder, seed
        self.published = generator
        if training.mean_decay(1) is not None:
            self.published = copy.deepcopy(generator)
            if rival is not None:
                self.published.discriminator = rival  # the one discriminator there is
        self.weights = [weight for weight in generator.parameters() if id(weight) not in discriminator]
        self.optimizer: Any = None
        self.discriminator_optimizer: Any = None
        if training.by_gradient:
            options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2)}
            self.optimizer = torch.optim.Adam(self.weights, **options)
            self.discriminator_optimizer = torch.optim.Adam(opposed, **options) if opposed else None
        self.opposed, self.saved = opposed, [name for name in _SAVED if getattr(self, name) is not None]
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        # Training may be prolonged, but not turned into another one.
        kept = {name: value for name, value in config.to_dict().items() if name != "steps"}
        names = {"prior": type(training).__name__, "seed": seed, "image_size": generator.image_size}
        self.settings = {**names, "generator": generator.config.to_dict(), **(generator.trained_with or {}), **kept}
        self.settings["target"] = None if target is None else network_digest(target.module)

    def update(self, target: Target | None, loader: Any, accelerator: Any) -> dict[str, Tensor]:
        """Update discriminator, if there is one, and generator; return the loss terms."""
        generator: Any = self.generator.train()
        like, processes = next(generator.parameters()).detach(), accelerator.num_processes
        count = self.training.config.batch_size // processes
        draws = TrainDraws(self.seed, self.step, count, like, accelerator.process_index, processes)
        losses: dict[str, Tensor] = {}
        for _ in range(self.training.reads_per_step):
            images, labels = next(loader)
            real = images.to(like), labels.to(like.device)
            terms = self.training.discriminator_loss(generator, target, real, draws)
            if self.opposed:
                _descend(terms, self.discriminator_optimizer, self.opposed, accelerator)
            losses = {f"discriminator_{name}": value.detach() for name, value in terms.items()}
        for weight in self.opposed:
            weight.requires_grad_(False)
        if self.optimizer is None:
            terms = self.training.solve(generator, target, real, draws)
        else:
            terms = self.training.generator_loss(generator, target, real, draws)
            _descend(terms, self.optimizer, self.weights, accelerator)
        for weight in self.opposed:
            weight.requires_grad_(True)
        self.step += 1
        self.follow(self.training.mean_decay(self.step))
        return losses | {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def follow(self, decay: float | None) -> None:
        """Move the running mean of the weights towards them; buffers are taken over."""
        if decay is None:
            return
        for kept, now in zip(self.published.parameters(), self.generator.parameters(), strict=True):
            if kept is not now:
                kept.lerp_(now, 1 - decay)
        for mine, theirs in zip(self.published.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(theirs)

    def buffers(self) -> list[Tensor]:
        """Running statistics, which each process gathers from its share alone."""
        networks = {id(network): network for network in (self.generator, self.published)}.values()
        return [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]

    def note(self, losses: dict[str, Tensor], bar: Any) -> dict[str, float]:
        """Keep and show the losses, and return them; refuse one that is not finite."""
        values = {name: float(value) for name, value in losses.items()}
        bad = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
        if bad:
            raise FloatingPointError(
                f"the loss {bad[0]} is not finite at step {self.step}; the checkpoint before it is kept in "
                f"{self.folder}: lower lr, or check that the images are in [0, 1]"
            )
        self.history.append({"step": self.step, **values})
        bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        return values

    def save(self) -> None:
        """Write record, generator (usable before the end), a grid of samples, and the checkpoint when all is there."""
        content = {name: getattr(self, name).state_dict() for name in self.saved}
        content |= {name: getattr(self, name) for name in ("step", "seconds", "history", "settings")}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self.write_record()  # first: by it the folder is known to be a prior's
        self.published.trained_steps = self.step, self.training.config.steps
        with saving(self.folder):
            self.published.save_pretrained(self.folder)
        finishing = Finishing(
            f"the generator of step {self.step} is saved in {self.folder}", "resume goes on from there"
        )
        with finishing.step("drawing samples"):
            write_whole(self.folder / SAMPLES / f"{self.step:06d}.png", image_grid(self._samples(), 8))
        write_whole(self.folder / CHECKPOINT, buffer.getvalue())
        finishing.end()

    @torch.no_grad()
    def _samples(self) -> Tensor:
        """The same 64 starts each time, by the generator as it is now."""
        generator = self.published.eval()
        latents = generator.sample_latents(64, named_rng(self.seed, "priors/sample-grid"))
        latents = latents.to(generator.device, generator.dtype)
        classes = generator.num_classes
        labels = None if classes is None else torch.arange(64, device=latents.device) // 8 % classes
        images: Tensor = generator(latents, labels)
        return images

    def write_record(self) -> None:
        """Write settings and losses as JSON."""
        record = {
            "calor_hf_version": __version__,
            **self.settings,
            "steps": self.training.config.steps,
            "steps_done": self.step,
            **({"target_queries": queries} if (queries := self.training.queries(self.step)) else {}),
            "seconds": round(self.seconds, 4),
            "history": self.history,
        }
        write_json(self.folder / RECORD, record, indent=1)

    def load(self) -> None:
        """Load the checkpoint in the folder, if there is one."""
        file = self.folder / CHECKPOINT
        if not file.is_file():
            return
        content = torch.load(file, map_location="cpu", weights_only=True)  # one of several has "cpu:0"
        begun = content["settings"]
        # A setting that the generator has got since then had its default.
        begun["generator"] = {**self.generator.config_class().to_dict(), **begun["generator"]}
        other = sorted(k for k, v in self.settings.items() if begun.get(k) != v)
        if other:
            was, now = ({k: s.get(k) for k in other} for s in (begun, self.settings))
            raise ValueError(
                f"the checkpoint in {self.folder} was made with {was}, now it is {now}; resume with the same"
            )
        for name in self.saved:
            getattr(self, name).load_state_dict(content[name])
        self.step, self.seconds, self.history = content["step"], content["seconds"], content["history"]
        logger.info("going on from step %d of %d", self.step, self.training.config.steps)


class _EndlessBatches(Sampler[list[int]]):
    """This process's share of batch after batch, epoch after epoch, each epoch shuffled by (seed, epoch)."""

    def __init__(self, count: int, batch_size: int, seed: int, first: int, process: int, processes: int) -> None:
        self.count, self.batch_size, self.seed, self.first = count, batch_size, seed, first
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.count // self.batch_size
        share = self.batch_size // self.processes
        batch = self.first
        while True:
            epoch, start = divmod(batch, per_epoch)
            order = named_rng(self.seed, "priors/order", epoch).permutation(self.count)
            for place in range(start, per_epoch):
                begin = place * self.batch_size + self.process * share
                yield order[begin : begin + share].tolist()
            batch = (epoch + 1) * per_epoch


def _check(training: PriorTraining[Any], images: Any, target: Target | None, processes: int) -> int:
    if training.needs_target:
        training.asked(target)
    if training.config.batch_size % processes:
        raise ValueError(f"batch_size {training.config.batch_size} cannot be shared by {processes} processes evenly")
    if len(images) == 0:
        raise ValueError("no public images to train on")
    shape = tuple(images[0].shape)
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise ValueError(f"expected square images of shape (3, side, side), got {shape}")
    return int(shape[1])
