"""Callback of a Trainer that audits the model during training and logs its leakage next to its accuracy."""

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from calor_hf.auditing import AuditOptions, LeakageReport, PrivateImages
from calor_hf.auditing.audit import evaluate, reconstruct
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import load_network
from calor_hf.core.digests import network_digest, text_digest
from calor_hf.core.files import check_writable, read_json, write_json
from calor_hf.core.processes import process_state
from calor_hf.core.report import REPORT, decoy_hits
from calor_hf.core.seeding import unchanged_randomness
from calor_hf.generators import Generator
from calor_hf.modeling.adapters import without_adapters
from calor_hf.targets.frozen import frozen
from calor_hf.targets.hf_target import HFTarget
from calor_hf.training.publishing import PublishingTrainer

logger = logging.getLogger(__name__)

AUDITS, FINISHED = "audits", "finished.json"
FEW_CLASSES = 8
CHEAP = AuditOptions(attacks=("plg@adaptive",), budget="demo", images_per_class=2, skip_power=True)
"""Options of an audit that shows a trend; the classes are the first :data:`FEW_CLASSES`."""
_SET_HERE = ("output_dir", "resume", "overwrite", "control", "target_name")


class AuditCallback(TrainerCallback):
    """Audit the model every few epochs of its training, and log what leaks.

    ``trainer.add_callback(AuditCallback(trainer, ...))`` works with ``CALoRTrainer``, ``DefenseTrainer`` and the
    ``Trainer`` of an image classification model. Logged through ``trainer.log``, so by all of ``report_to``:

    - ``audit_leakage``: share of rebuilt images that are recognized, of the strongest attack; for a model with decoys
      as any identity of the class;
    - ``audit_chance_level``: the highest chance level of the same;
    - ``audit_accuracy``: accuracy of the model on the held-out images, if there are any and no decoys.

    Reports and reconstructions are in ``output_dir/audits/step-N``. A training that is resumed reads an audit that had
    finished; an audit of another model or with other options is left as it is, and gets a folder of its own. The
    weights, gradients, modes and random states of the training stay as they are, so its result is the same with and
    without the callback. An audit that fails is logged as a warning, and training continues. Several processes share
    the attacked classes.

    Few people and little effort show a trend; audit the result with :func:`calor_hf.audit`.

    Args:
        trainer: The trainer that the callback is added to; its ``processing_class`` is the model's image processor.
        private: Images that the model is trained on.
        prior: The generator of the attacks.
        evaluation_model: As for :func:`calor_hf.audit`.
        options: Attacks, classes and effort. None means :data:`CHEAP`. The callback sets the folder of the files.
        every_epochs: Epochs from one audit to the next.

    Raises:
        TypeError: a trainer, private images or a prior of another type.
        ValueError: options that the callback sets, a trainer without an image processor, with weights in shards or
            whose push would upload the reconstructions, or parts that an audit refuses.
    """

    def __init__(
        self, trainer: Trainer, private: PrivateImages, prior: Generator[Any], evaluation_model: Any,
        options: AuditOptions | None = None, *, every_epochs: int = 1,
    ) -> None:  # fmt: skip
        expected = {"trainer": (trainer, Trainer), "private": (private, PrivateImages), "prior": (prior, Generator)}
        for name, (value, kind) in expected.items():
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}; see docs/audit.md")
        if isinstance(every_epochs, bool) or not isinstance(every_epochs, int) or every_epochs < 1:
            raise ValueError(f"every_epochs must be a whole number >= 1, got {every_epochs}")
        _check_trainer(trainer)
        count = int(without_adapters(trainer.model).config.num_labels)
        options = options or replace(CHEAP, classes=range(min(FEW_CLASSES, count)))
        defaults = {one.name: one.default for one in fields(AuditOptions)}
        if given := [name for name in _SET_HERE if getattr(options, name) != defaults[name]]:
            raise ValueError(f"the callback sets {', '.join(given)} itself or does without; leave that out of options")
        self.trainer, self.private, self.prior, self.options = trainer, private, prior, options
        self.evaluation_model, self.every_epochs = load_network(evaluation_model), every_epochs
        with frozen(without_adapters(trainer.model)), unchanged_randomness():
            self._evaluator()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a training of another trainer, without epochs or with too few, and a folder without write access."""
        if args is not self.trainer.args:
            raise ValueError("this AuditCallback was made for another trainer; make one with this trainer")
        loader = kwargs["train_dataloader"]
        if not has_length(loader):
            raise ValueError("AuditCallback counts epochs, and the training data have no length; leave it out")
        epochs = state.max_steps // -(-len(loader) // args.gradient_accumulation_steps)
        if epochs < self.every_epochs:
            raise ValueError(f"every_epochs={self.every_epochs}, but training has {epochs} whole epochs; lower it")
        check_writable(Path(args.output_dir) / AUDITS)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Audit the model and log the result, if the epoch is one of those and was not cut short."""
        if not float(state.epoch).is_integer() or int(state.epoch) % self.every_epochs:
            return
        try:
            with frozen(without_adapters(self.trainer.model)), unchanged_randomness():
                report = self._audited(Path(args.output_dir) / AUDITS, state.global_step)
        except Exception as error:
            if process_state().num_processes > 1:  # the others wait for this one
                raise
            logger.warning("the audit after step %d failed, training continues: %s", state.global_step, error)
            return
        should_log = control.should_log  # logging resets it
        self.trainer.log(logged(report))
        control.should_log = should_log

    def _evaluator(self) -> Evaluator:
        target = HFTarget(without_adapters(self.trainer.model), self.trainer.processing_class)
        labels = self.options.labels(target.num_classes, target.class_names)
        return Evaluator(target, self.private, self.prior, labels, self.evaluation_model, self.options)

    def _audited(self, folder: Path, step: int) -> LeakageReport:
        """Audit the model, or read the report of an audit of the same model with the same options."""
        evaluator, state = self._evaluator(), process_state()
        content = self._content(evaluator)
        place, finished = folder_of(folder, step, content)
        state.wait_for_everyone()
        if finished:
            return LeakageReport.load(place / REPORT)
        options = replace(self.options, output_dir=str(place), target_name=place.name, overwrite=True)
        found = reconstruct(evaluator.target, self.prior, evaluator.labels, options)
        report = evaluate(evaluator, found, options)
        if state.is_local_main_process:
            write_json(place / FINISHED, {"content": content})
        return report

    def _content(self, evaluator: Evaluator) -> str:
        """Digest of everything that the numbers depend on."""
        options, prior = self.options, evaluator.prior
        plain = ("images_per_class", "seed", "metrics", "skip_power", "anonymize_labels")
        return text_digest([
            {role: network_digest(one.module) for role, one in evaluator.networks.items()},
            [(one.name, one.attack.config.to_dict()) for one in options.named_attacks],
            [network_digest(prior), evaluator.data.digest, evaluator.labels],
            [getattr(options, name) for name in plain],
        ])  # fmt: skip


def folder_of(folder: Path, step: int, content: str) -> tuple[Path, bool]:
    """Return the folder of an audit, and whether it has finished; one that is finished with other content stays."""
    number = 1
    while True:
        place = folder / (f"step-{step}" if number == 1 else f"step-{step}-{number}")
        file = place / FINISHED
        if not file.is_file():
            return place, False
        if read_json(file, {"content": str})["content"] == content:
            return place, True
        number += 1


def logged(report: LeakageReport) -> dict[str, float]:
    """Return the numbers to log; those of a model with decoys do not depend on which identities are private."""
    attack, name = report.strongest, report.verdict.measure
    name = decoy_hits(name) if report.with_decoys else name
    found = {}
    if attack is not None and (measure := attack.get(name)) is not None:
        found = {"audit_leakage": measure.value, "audit_chance_level": attack.chance_level(name)}
    shown = [] if report.with_decoys else report.utility
    return found | {f"audit_{one.name}": one.value for one in shown if one.name == "accuracy"}


def _check_trainer(trainer: Any) -> None:
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "AuditCallback needs all weights in each process, and FSDP and DeepSpeed keep them in shards; leave it "
            "out, and audit the saved model"
        )
    if trainer.processing_class is None:
        raise ValueError(
            "the trainer has no image processor, so it is not known how images become inputs; pass "
            "processing_class=AutoImageProcessor.from_pretrained(...) to the trainer"
        )
    if trainer.args.push_to_hub and not isinstance(trainer, PublishingTrainer):
        raise ValueError(
            "push_to_hub of this trainer uploads output_dir with the reconstructions of private images; leave it out "
            "and push the result with calor-hf push, or train with DefenseTrainer, which uploads the model alone"
        )
