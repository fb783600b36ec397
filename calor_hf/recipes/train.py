"""Train a model: data → base model → defense → stages → saved model, table and curves."""

import copy
import logging
import shutil
import time
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import transformers
from torch.utils.data import default_collate
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    PrinterCallback,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)

from calor_hf.core.files import check_unused, check_writable, delete, reading, remove_parts, saving, write_json
from calor_hf.core.fingerprints import FINGERPRINTS, keep_fingerprints
from calor_hf.core.finishing import Finishing
from calor_hf.core.report_text import percent
from calor_hf.core.saved_config import check_config, processor_of
from calor_hf.data.augment import augmentation_for
from calor_hf.data.bad_images import content_digests
from calor_hf.data.decoys import IDENTITIES, identities_per_class
from calor_hf.data.images import ImageDataset, balanced_class_weights
from calor_hf.data.loading import Splits
from calor_hf.data.pixel_input import check_channels
from calor_hf.defenses import DEFENSES, Defense
from calor_hf.defenses.low_rank import LowRankConfig, LowRankDefense
from calor_hf.hub.push import check_token
from calor_hf.modeling import DefendedForImageClassification, defend
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.recipes.backdoor import backdoor_record, poison
from calor_hf.recipes.common import PREDICTIONS, check_apart, hub_id, log_to_terminal
from calor_hf.recipes.identities import check_base, identities_for
from calor_hf.recipes.train_arguments import DataArguments, ModelArguments, RunArguments, defense_settings
from calor_hf.recipes.train_report import EpochLine, draw_curves, show
from calor_hf.training.arguments import CALoRTrainingArguments
from calor_hf.training.calor_trainer import FIRST_STAGE_FOLDER, CALoRTrainer, trainer_class
from calor_hf.training.checkpoints import complete_checkpoints, is_complete, load_weights
from calor_hf.training.checks import UNTRAINED, looks_untrained
from calor_hf.training.estimate import estimate_seconds
from calor_hf.training.measuring import RECORD, Measured, write_record
from calor_hf.training.rank import suggest_rank
from calor_hf.training.same_run import RUN
from calor_hf.training.trainer import DefenseTrainer

logger = logging.getLogger("calor_hf.train")

EVALUATION_NETWORK: dict[str, Any] = {
    "embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "groups_width": 16,
    "layer_type": "x",
}  # fmt: skip
FINISH_AGAIN = "mend that, and run the same command with --resume: it trains nothing again"
UNDEFENDED_FOLDER = "undefended"
BEGUN_FILES = ("checkpoint-*", FIRST_STAGE_FOLDER, UNDEFENDED_FOLDER, "runs")
RESULT_FILES = ("config.json", "model*.safetensors*", "preprocessor_config.json", "trainer_state.json",
                "training_args.bin", RECORD, RUN, "curves.png", PREDICTIONS, FINGERPRINTS, "evidence.json",
                "reconstructions.png")  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        model: The result, in memory.
        record: Content of ``metrics.json``, see :meth:`~calor_hf.training.measuring.MeasuringTrainer.record`.
    """

    model: PreTrainedModel
    record: dict[str, Any]


def train(
    model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments, args: CALoRTrainingArguments
) -> Result:
    """Train, measure and save a model, as `calor-hf train` does.

    Args:
        model_args: Base model and defense.
        data_args: Training data.
        run_args: Whether to resume or overwrite.
        args: Training arguments.

    Raises:
        AccuracyLostError: no adapted checkpoint keeps the accuracy.
        FloatingPointError: the loss is not finite.
        FinishingError: the model is trained and saved, but measuring, drawing or pushing failed.
        ValueError: options that do not fit together, a model or data.
        FileExistsError: the output folder is used.
    """
    begin = time.perf_counter()
    log_to_terminal(args.process_index == 0)
    folder, push = Path(args.output_dir), args.push_to_hub
    check_apart(folder, data_args.dataset, model_args.model)
    if push:
        check_token(args.hub_token, args.hub_model_id or folder.absolute().name)
    args.push_to_hub = push and args.push_unfinished  # the finished model is pushed once, when its card can be written
    if args.should_save:
        prepare_folder(folder, run_args)
    set_seed(args.seed)
    base, data, common = load_parts(model_args, data_args, args)
    metrics: dict[str, dict[str, float]] = {}
    if model_args.undefended_epochs > 0:
        metrics = fine_tune_undefended(base, model_args, run_args, args, common)
        set_seed(args.seed)  # the head starts the same, whether that was trained now or before a stop
    model = defended(base, model_args, data, trained=bool(metrics) or not looks_untrained(base))
    trainer = trainer_class(model)(model=model, args=args, **common)
    if args.should_save and not run_args.resume:
        check_room(trainer)
    run_trainer(trainer, run_args)
    args.push_to_hub = False
    if args.should_save:
        (folder / RECORD).unlink(missing_ok=True)  # of fewer epochs
    trainer.save_model(_internal_call=True)
    trainer.save_state()
    finishing = Finishing(f"the model is trained and saved in {folder}", FINISH_AGAIN)
    with finishing.step("measuring it"):
        measured = measured_by(trainer)
        metrics |= measured.metrics
        last = metrics[next(reversed(metrics))]
        last["validation_accuracy"] = trainer.measure_images(trainer.get_eval_dataloader())["accuracy"]
        synthetic = f"synthetic faces, {data_args.num_identities} {data_args.stream} identities"
        record = trainer.record(
            replace(measured, metrics=metrics),
            dataset=data_args.dataset or synthetic,
            drawn=data_args.dataset is None,
            dataset_id=hub_id(data_args.dataset),
            base_model=hub_id(model_args.model),
            backdoor=backdoor_record(data["train"]),
            wall_seconds=time.perf_counter() - begin,
            command=run_args.command,
        )
    finishing.end()
    if args.should_save:
        with finishing.step("drawing the curves"):
            draw_curves(trainer, record, folder / "curves.png")
        with finishing.step("writing its numbers"):
            if (images := getattr(data["train"], "images", None)) is not None:  # not of a poisoned set
                keep_fingerprints(folder, content_digests(images))
            write_record(folder, record)  # last: all is there
            show(trainer.model, record, folder)
    if push:
        with finishing.step("pushing it"):
            trainer.push_to_hub()
    finishing.end()
    return Result(trainer.model, record)


def check_room(trainer: DefenseTrainer) -> None:
    """Refuse a disk without room for the least that a run writes: a checkpoint, the first stage and the result.

    Raises:
        ValueError: the message says how much is needed.
    """
    args, weights = trainer.args, sum(weight.nbytes for weight in trainer.model.parameters())
    models = 2 + isinstance(trainer, CALoRTrainer) + 2 * ("adam" in args.optim)  # with its two moments
    needed, free = models * weights, shutil.disk_usage(args.output_dir).free
    if free < needed:
        raise ValueError(
            f"{args.output_dir} has room for {free / 2**20:,.0f} MiB, and the run writes at least "
            f"{needed / 2**20:,.0f}; make room, or pass another --output-dir"
        )


def prepare_folder(folder: Path, run_args: RunArguments) -> None:
    """Check that a folder can be used: it is empty, or its run is to be resumed or overwritten.

    Raises:
        FileExistsError: it is not empty, and neither ``resume`` nor ``overwrite`` is set.
    """
    if run_args.overwrite:
        delete(path for pattern in (*BEGUN_FILES, *RESULT_FILES) for path in folder.glob(pattern))
    elif run_args.resume:
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        # Stopped before the first complete checkpoint: there is nothing to lose, but other files are not of this run.
        others = [name for name in found if not any(fnmatch(name, pattern) for pattern in BEGUN_FILES)]
        if others and not complete_checkpoints(folder):
            raise FileExistsError(
                f"no complete checkpoint in {folder} to resume from, and there are other files "
                f"({', '.join(others[:3])}); pass another --output-dir, or --overwrite to delete an earlier run there"
            )
        remove_parts(folder)
    else:
        check_unused(folder, "run")
    check_writable(folder)


def load_parts(
    model_args: ModelArguments, data_args: DataArguments, args: CALoRTrainingArguments
) -> tuple[PreTrainedModel, dict[str, ImageDataset], dict[str, Any]]:
    """Base model, data by split, and keyword arguments for every trainer of the run."""
    with args.main_process_first(desc="loading data"):
        splits = data_args.load(data_args.num_identities, stream=data_args.stream)
    base, processor = load_base(model_args, splits)
    check_channels(base)
    check_defense(base, splits, model_args, data_args, args)
    with_identities = identities_for(model_args, splits) > 0
    data: dict[str, Any] = datasets_for(splits, processor, data_args.augmentation, args.seed, with_identities)
    if data_args.backdoor is not None:
        data["train"] = poison(data["train"], base, processor, data_args)
    balanced, classes = data_args.class_weights == "balanced", len(splits.label_names)
    common: dict[str, Any] = {
        "data_collator": default_collate,
        "train_dataset": data["train"],
        "eval_dataset": data["validation"],
        "test_dataset": data["test"],
        "processing_class": processor,
        "class_weights": balanced_class_weights(data["train"].labels, classes) if balanced else None,
    }
    return base, data, common


def load_base(model_args: ModelArguments, splits: Splits) -> tuple[PreTrainedModel, Any]:
    """Base model with an ordinary head for the data's classes, and its image processor."""
    names = dict(enumerate(splits.label_names))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    if model_args.model is None:
        size = max(splits.train[0]["image"].size)
        # PIL, with or without torchvision: the same images on every machine.
        kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
        processor = kind(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        if model_args.role == "evaluation":
            return RegNetForImageClassification(RegNetConfig(**EVALUATION_NETWORK, **labels)), processor
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic", **labels
        )
        return ResNetForImageClassification(config), processor
    try:
        check_config(model_args.model, revision=model_args.model_revision)
        with reading(f"configuration or image processor of {model_args.model}"):
            config = AutoConfig.from_pretrained(model_args.model, revision=model_args.model_revision)
            processor = processor_of(model_args.model, revision=model_args.model_revision)
    except OSError as error:
        raise ValueError(
            f"no model in the folder {model_args.model}, and the Hub gave none of this name ({error}); pass a folder "
            "that holds config.json, weights and preprocessor_config.json, or check the id and the connection"
        ) from error
    if isinstance(config, DefendedConfig):
        raise ValueError(
            f"{model_args.model} is a model of the defense '{config.defense}' already; pass the base model it was "
            "made from"
        )
    if processor is None:
        raise ValueError(
            f"{model_args.model} has no image processor, and its normalization of images is not known without; save "
            "the one that it was trained with as preprocessor_config.json in its folder, for example "
            "AutoImageProcessor.from_pretrained(original).save_pretrained(folder)"
        )
    kept = model_args.head_init == "svd" and model_args.undefended_epochs == 0
    if kept and config.num_labels != len(names):
        raise ValueError(
            f"--head-init svd keeps the classifier of {model_args.model}, which has {config.num_labels} classes, but "
            f"the data have {len(names)}; pass --undefended-epochs to train one first, or --head-init random"
        )
    with reading(f"the model in {model_args.model}"):
        base = AutoModelForImageClassification.from_pretrained(
            model_args.model,
            revision=model_args.model_revision,
            attn_implementation=model_args.attn_implementation,
            **({} if kept else {**labels, "num_labels": len(names), "ignore_mismatched_sizes": True}),
        )
    if looks_untrained(base):
        logger.warning(
            "the model in %s %s. Training starts from scratch, without features that --rank auto could measure; pass a "
            "trained model if that is not meant",
            model_args.model,
            UNTRAINED,
        )
    if hasattr(base.config, "label_names"):  # timm's configuration saves this list and not id2label
        base.config.label_names = [names[label] for label in range(len(names))]
    return base, processor


def datasets_for(
    splits: Splits, processor: Any, augmentation: str, seed: int, with_identities: bool = False
) -> dict[str, ImageDataset]:
    """Train, validation and test data as model inputs; only training images are augmented, or carry identities."""
    plain = {
        name: ImageDataset(getattr(splits, name), processor, None, seed) for name in ("train", "validation", "test")
    }
    sides = [data.check_processor() for data in plain.values()]
    plain["train"].identity_column = IDENTITIES if with_identities else None
    plain["train"].augmentation = augmentation_for(augmentation, sides[0])
    return plain


def defended(base: PreTrainedModel, model_args: ModelArguments, data: dict[str, ImageDataset], trained: bool) -> Any:
    """Defended model from ``base``, whose features are useful if it is ``trained``; ``base`` itself with ``none``."""
    if model_args.defense == "none":
        return base
    settings, defense = _chosen(model_args)
    if defense.identities_per_class:
        images = data["train"]
        settings["k"] = identities_per_class(images.images[images.label_column], images.images[IDENTITIES])
    if trained and isinstance(defense, LowRankDefense) and defense.own_head and defense.config.rank is None:
        settings["rank"] = find_rank(base, model_args, defense.config, data)
    settings |= {"id2label": base.config.id2label, "head": model_args.head}
    if model_args.head_init == "svd":
        plain = data["train"].without_augmentation()
        step = max(1, len(plain) // 512)
        calibration = [default_collate([plain[i]]) for i in range(0, len(plain), step)]
        settings |= {"head_init": "svd", "calibration": calibration}
    return defend(base, model_args.defense, **settings)


def _chosen(model_args: ModelArguments) -> tuple[dict[str, Any], Defense[Any]]:
    """Settings of the chosen defense, and the defense with them."""
    settings = defense_settings(model_args)
    method = DEFENSES.get(model_args.defense)
    return settings, method(method.config_class.from_dict(settings))


def check_defense(
    base: PreTrainedModel, splits: Splits, model_args: ModelArguments, data_args: DataArguments,
    args: CALoRTrainingArguments,
) -> None:  # fmt: skip
    """Refuse a defense that does not fit the rest of a run, before anything is trained or measured.

    Raises:
        ValueError: data without the identities that it needs, a base model that has seen them, or a setting that does
            not fit ``base``, its classes or ``args``.
    """
    if model_args.defense == "none":
        return
    if identities_for(model_args, splits) and model_args.model is not None:
        check_base(model_args.model, model_args.model_revision, str(data_args.dataset), splits)
    settings, defense = _chosen(model_args)
    defense.stages(args)
    if isinstance(defense, LowRankDefense) and defense.own_head:
        settings.setdefault("rank", 1)  # any will be found
    DefendedForImageClassification.check_base(
        base, model_args.defense, head_init=model_args.head_init, head=model_args.head, **settings
    )


def find_rank(
    base: PreTrainedModel, model_args: ModelArguments, config: LowRankConfig, data: dict[str, ImageDataset]
) -> int:
    """Rank that the features of ``base`` need by the head of ``config``; logs the curve of accuracy against rank."""
    found = suggest_rank(
        base, data["train"], data["validation"], num_labels=base.config.num_labels, activation=config.activation,
        bias=config.bias, input_norm=config.input_norm, head_init=model_args.head_init, head=model_args.head,
    )  # fmt: skip
    curve = ", ".join(f"{r}: {percent(accuracy)}" for r, accuracy in found.curve)
    logger.info(
        "rank %d chosen by validation accuracy on frozen features (%s; full head %s)",
        found.rank, curve, percent(found.full_accuracy),
    )  # fmt: skip
    return found.rank


def fine_tune_undefended(
    base: PreTrainedModel, model_args: ModelArguments, run_args: RunArguments, args: CALoRTrainingArguments,
    common: dict[str, Any],
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Fine-tune ``base`` in place, in its own folder, before the head is swapped: the paper's setting C.

    Each phase has its own learning-rate schedule; the paper continues one schedule over both.
    """
    folder = Path(args.output_dir) / UNDEFENDED_FOLDER
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    own = copy.copy(args)
    own.push_to_hub = False
    own.output_dir, own.num_train_epochs, own.lr_drop_epochs = str(folder), model_args.undefended_epochs, []
    trainer = DefenseTrainer(model=base, args=own, **common)
    if run_args.resume and is_complete(folder):
        trainer.check_resumes(folder, None)
        load_weights(base, folder)
    else:
        run_trainer(trainer, run_args)
        trainer.save_model(_internal_call=True)
        trainer.save_state()  # last: all is there
    finishing = Finishing(f"the undefended model is trained and saved in {folder}", FINISH_AGAIN)
    with finishing.step("measuring it"):
        measured = measured_by(trainer)
    finishing.end()
    return measured.metrics


def run_trainer(trainer: DefenseTrainer, run_args: RunArguments) -> None:
    """Log the expected duration, and train; the result is not measured yet."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(EpochLine(trainer))
    if trainer.is_world_process_zero():
        minutes = estimate_seconds(trainer) / 60
        stages = ", ".join(f"{stage.name} {stage.epochs:g} epochs" for stage in trainer.stages())
        logger.info("about %.1f minutes of training at most (%s)", minutes, stages)
    begun = run_args.resume and bool(complete_checkpoints(trainer.args.output_dir))
    if run_args.resume and not begun and trainer.is_world_process_zero():
        logger.info("no complete checkpoint in %s: from the beginning", trainer.args.output_dir)
    trainer.train_stages(resume_from_checkpoint=True if begun else None)


def measured_by(trainer: DefenseTrainer) -> Measured:
    """Measure the result of a trainer on the test images.

    Writes ``test_predictions.json``, their labels and predicted classes, by which runs are compared.
    """
    trainer.measure_result()
    found = cast(Measured, trainer.measured)
    if trainer.args.should_save:
        record = {"labels": found.labels, "predictions": found.predictions}
        write_json(Path(trainer.args.output_dir) / PREDICTIONS, record)
    return found
