"""Plans: expected time, passes, memory and disk of a run, extrapolated from short runs of its parts."""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from timeit import timeit
from typing import Any

import numpy as np

from calor_hf._version import __version__
from calor_hf.attacks import AttackConfig
from calor_hf.attacks.prior_samples import PriorSamples
from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing import AuditOptions
from calor_hf.auditing.attribute_network import attribute_network
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.power import IMAGES, Power
from calor_hf.core.peak_memory import PeakMemory
from calor_hf.core.plain_text import aligned
from calor_hf.core.processes import process_state
from calor_hf.data.loading import load_public_images
from calor_hf.generators import Generator
from calor_hf.priors import time_step
from calor_hf.recipes import audit
from calor_hf.recipes.prior import PriorOptions, prior_parts
from calor_hf.recipes.train import defended, load_parts
from calor_hf.recipes.train_arguments import parse
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import HFTarget
from calor_hf.training.calor_trainer import CALoRTrainer, trainer_class
from calor_hf.training.estimate import measure_step, planned_work

PASSES = ("generator_passes", "target_passes", "target_gradients")


@dataclass(frozen=True)
class Part:
    """Part of a run: seconds (``at_least``: if it ends as early as it may), and images by network and direction."""

    name: str
    seconds: float
    at_least: float | None = None
    passes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Expected cost of a run."""

    command: str
    parts: Sequence[Part]
    memory_bytes: int  # peak of one process, on its device
    disk_bytes: int  # files left behind
    device: str  # of the trials
    processes: int
    assumptions: Sequence[str]  # and omissions

    @property
    def total(self) -> Part:
        """Sum of all parts."""
        names = dict.fromkeys(name for part in self.parts for name in part.passes)
        passes = {name: sum(part.passes.get(name, 0) for part in self.parts) for name in names}
        at_least = sum(part.seconds if part.at_least is None else part.at_least for part in self.parts)
        return Part("in all", sum(part.seconds for part in self.parts), at_least, passes)

    def to_dict(self) -> dict[str, Any]:
        """Content of the JSON file."""
        sums = {"seconds": self.total.seconds, "at_least_seconds": self.total.at_least, "passes": self.total.passes}
        return {"version": __version__, **asdict(self), **sums}

    def table(self) -> str:
        """Table for the terminal, with the assumptions below it."""
        total, hours = self.total, self.total.seconds / 3600
        rows = [["", "time", *(name.replace("_", " ") for name in total.passes)]]
        for part in [*self.parts, total]:
            passes = (f"{part.passes.get(name, 0):,}" for name in total.passes)
            rows.append([part.name, duration(part.seconds, part.at_least), *passes])
        return "\n".join([
            f"{aligned(rows)}\n",
            f"hours: {hours:.3g} of wall time, {hours * self.processes:.3g} of devices ({self.device})",
            f"memory: {self.memory_bytes / 2**20:,.0f} MiB per process at its peak",
            f"disk: {self.disk_bytes / 2**20:,.0f} MiB left behind\n",
            "assumed:", *(f"- {line}" for line in self.assumptions),
        ])  # fmt: skip


def duration(seconds: float, at_least: float | None = None) -> str:
    """Seconds in a readable unit, or a range."""
    if at_least is not None and at_least < seconds:
        return f"{duration(at_least)} to {duration(seconds)}"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_training(argv: Sequence[str], processes: int = 1) -> Plan:
    """Plan a training with these options of ``calor-hf train``, from a few steps of a copy of the model."""
    begin = time.perf_counter()
    model_args, data_args, _, args = parse(argv)
    with tempfile.TemporaryDirectory() as args.output_dir:  # a trainer creates its folder
        args.push_to_hub = False
        base, data, common = load_parts(model_args, data_args, args)
        model = defended(base, model_args, data, trained=False)  # True searches for the rank, which takes long
        trainer = trainer_class(model)(model=model, args=args, **common)
        parts = [Part("loading", time.perf_counter() - begin)]
        cost, work = measure_step(trainer), planned_work(trainer, model_args.undefended_epochs)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    for one in work:
        steps = math.ceil(one.steps / (1 if args.max_steps > 0 else processes))  # --max-steps is never divided
        trained = steps * batch * processes
        seconds = steps * cost.seconds + one.evaluated * cost.image_seconds / processes
        passes = {"model_forward": trained + one.evaluated, "model_backward": trained}
        parts.append(Part(one.name, seconds, seconds * one.at_least, passes))
    adapts, checkpoints = isinstance(trainer, CALoRTrainer), sum(one.epochs for one in work)
    kept = 3 * min(checkpoints, args.save_total_limit or checkpoints)  # each with the two moments of AdamW
    disk = cost.weight_bytes * (kept + 1 + adapts + (model_args.undefended_epochs > 0))
    assumptions = [f"steps as long as those of a trial ({batch} images per device each), an evaluation each epoch"]
    assumptions += ["the adapt stage stops by rule: after one epoch at the earliest"] * adapts
    return Plan("train", parts, cost.memory_bytes, disk, args.device.type, processes, assumptions)


def plan_prior(options: PriorOptions, processes: int = 1) -> Plan:
    """Plan the training of a prior, from trainings of few steps."""
    if options.import_file is not None:
        raise ValueError("--import trains nothing, so there is nothing to plan")
    device, begin = process_state().device, time.perf_counter()
    with PeakMemory(device) as memory, tempfile.TemporaryDirectory() as folder:
        method, images, target, chosen = prior_parts(options, processes)
        loading, step = time.perf_counter() - begin, time_step(method, images, target, folder)
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    c = method.config
    passes = {"real_images": c.steps * method.reads_per_step * c.batch_size * method.batches_per_update}
    parts = [Part("loading", loading), Part("training", step * c.steps / processes, passes=passes)]
    assumptions = [*chosen, "steps as long as the first ones; checkpoints on the way are not counted"]
    return Plan("prior", parts, memory.peak, disk, device.type, processes, assumptions)


def plan_audit(options: audit.AuditRecipe, processes: int = 1, seconds: float = 30.0) -> Plan:
    """Plan an audit, from short runs of its attacks (of about ``seconds`` in all) and of its networks."""
    begin = time.perf_counter()
    target = HFTarget.from_pretrained(str(options.model or options.target))
    target.module.to(process_state().device)
    options = audit.with_defaults(options, target)
    if options.public_dataset is not None:
        options = replace(options, public_images=load_public_images(options.public_dataset, target.image_size[0]))
    generator = audit.prior_of(options, target).to(target.device)
    labels, attacks = options.labels(target.num_classes, target.class_names), options.named_attacks
    before, after, memory = [Part("loading", time.perf_counter() - begin)], list[Part](), 0
    assumptions = ["attacks whose cost grows in proportion to classes and budget; some end early when they succeed"]
    assumptions += ["fitting the prior ridge is not counted"] * audit.fits_own_prior(options)
    if argv := audit.control_argv(options):
        before.append(replace(plan_training(argv).total, name="control"))
    for named in attacks:
        part, peak, learns = plan_attack(named, target, generator, labels, options, processes, seconds / len(attacks))
        after, memory = [*after, part], max(memory, peak)
        after += [replace(part, name=f"{named.name} on the control")] if options.control is not None else []
        assumptions += [f"{named.name}: what it learns before the first class is not counted"] * learns
    blocks = sum(max(1, len(named.attack.parts(target, generator))) for named in attacks)
    rebuilt = options.images_per_class * blocks * len(labels)
    if not options.reconstructions_only:
        model: Any = options.evaluation_model or options.evaluation_folder
        if argv := audit.evaluation_model_argv(options, target):
            before.append(replace(plan_training(argv).total, name="evaluation model"))
            model = HFTarget.from_pretrained(str(options.model or options.target))  # a stand-in, with other weights
            model.module.load_state_dict({name: value / 2 for name, value in model.module.state_dict().items()})
        private = options.private_images(target, labels)
        if audit.reads_attributes(options, private):
            with tempfile.TemporaryDirectory() as folder:
                spent = timeit(lambda: attribute_network(Path(folder) / "weights", share=0.02), number=1)
            before.append(Part("network of attributes", 50 * spent))
        few = replace(private.of_classes(labels[:2]), held_images=None, held_labels=None)
        evaluator = Evaluator(target, few, generator, labels[:2], model, replace(options, metrics=None))
        networks, some = evaluator.networks.values(), private.images[:64]
        held: Any = [] if private.held_labels is None else private.held_labels
        images = len(private.labels) + len(held) + 2 * rebuilt  # chance levels use as many samples of the prior
        spent = timeit(lambda: [network.outputs(some) for network in networks], number=1) / len(some) * images
        after.append(Part("evaluating", spent, passes={"evaluation_passes": images * len(networks)}))
        if not options.skip_power:
            power = Power(evaluator, options.images_per_class, options.chunk_size)
            share = len(power.images) / min(IMAGES, power.each * len(labels))
            after.append(Part("power", timeit(power.checks, number=1) / share))
        assumptions.append("the first process evaluates; metrics that train something are not counted")
    disk = 4 * (3 * generator.image_size**2 + generator.latent_dim) * rebuilt  # float32
    return Plan("audit", before + after, memory, disk, target.device.type, processes, assumptions)


def plan_attack(
    named: NamedAttack, target: Target, prior: Generator[Any], labels: Sequence[int], options: AuditOptions,
    processes: int = 1, seconds: float = 15.0,
) -> tuple[Part, int, bool]:  # fmt: skip
    """Plan an attack, from short runs with small budgets on few classes and on twice as many.

    Cost is taken to be linear in classes and in every setting that the budget scales. Returns the part, the peak memory
    of a process in bytes, and whether the attack learns before its first class.
    """
    attack, images, seed, chunk = named.attack, options.images_per_class, options.seed, options.chunk_size
    mine = math.ceil(len(labels) / processes)
    per_chunk = max(1, chunk // attack.rows(images))
    few = min(mine, 1 if target.device.type == "cpu" else per_chunk)  # an accelerator needs a whole chunk to be busy
    more = min(mine, 2 * few)
    # From the smallest budget to the whole one; rounding makes some of them equal.
    scaled = [attack.config.scaled(2.0**power) for power in range(-6, 1)]
    budgets = list({tuple(_efforts(config).values()): config for config in scaled}.values())
    whole = _efforts(budgets[-1])
    lessons: Any = PriorSamples(target, prior, 16, seed) if options.public_images is None else options.public_images
    lessons = [lessons[index] for index in range(min(len(lessons), 16))]
    with PeakMemory(target.device) as memory, tempfile.TemporaryDirectory() as folder:

        def trial(config: AttackConfig, classes: int) -> np.ndarray:
            short = type(attack)(config)
            short.prepare_for(target, prior, lessons, Path(folder), seed)
            begin = time.perf_counter()
            cost = short.run(target, prior, labels[:classes], images_per_class=images, seed=seed, chunk_size=chunk).cost
            return np.array([time.perf_counter() - begin, *(getattr(cost, kind) for kind in PASSES)])

        trial(budgets[0], few)  # warms up, and keeps in the folder what the attack learns about the target
        for config in budgets:
            cost = trial(config, few)
            if cost[0] >= seconds / 8:
                break
        base = _efforts(config)
        # Each setting has a slope of its own: rounding and least values hold them back at different budgets.
        longer = {
            name: next(value for value in (_efforts(budget)[name] for budget in budgets) if value > base[name])
            for name in base
            if base[name] < whole[name]
        }

        def extrapolated(classes: int, cost: np.ndarray) -> np.ndarray:
            costs = {name: trial(replace(config, **{name: value}), classes) for name, value in longer.items()}
            return _extrapolated(cost, [
                (costs[name], (whole[name] - base[name]) / (longer[name] - base[name])) for name in longer
            ])  # fmt: skip

        at_few = extrapolated(few, cost)
        per_class = at_few / few
        if more > few:
            per_class = np.maximum(extrapolated(more, trial(config, more)) - at_few, 0) / (more - few)
        learns = any(Path(folder).iterdir())
    total = per_class * len(labels) + np.maximum(at_few - few * per_class, 0) * min(processes, len(labels))
    passes = dict(zip(PASSES, np.rint(total[1:]).astype(int).tolist(), strict=True))
    part = Part(named.name, float(at_few[0] + per_class[0] * (mine - few)), passes=passes)
    return part, int(memory.before + memory.grown * min(per_chunk, mine) / min(per_chunk, more)), learns


def _efforts(config: AttackConfig) -> dict[str, int]:
    """The settings, whole numbers, that grow with the budget."""
    scaled = (f.name for f in fields(config) if "scales_to" in f.metadata)
    return {name: getattr(config, name) for name in scaled if isinstance(getattr(config, name), int)}


def _extrapolated(cost: np.ndarray, longer: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """Cost of the whole budget, linear in every setting.

    Args:
        cost: That of a trial.
        longer: Costs of trials in which one setting was larger, and its growth up to the whole budget in units of this.
    """
    total = cost
    for one, growth in longer:
        total = total + np.maximum(one - cost, 0) * growth
    return total
