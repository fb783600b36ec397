"""Publishing a trained model: the model, its image processor and its card, in one commit, and nothing else."""

import inspect
import logging
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from calor_hf.core.files import write_whole
from calor_hf.hub.card import CARD, CardDetails, base_card, build_card
from calor_hf.hub.evidence import StaleRecordError, gather
from calor_hf.hub.push import push_release, remote_card
from calor_hf.hub.release import prepare_release
from calor_hf.modeling.base_model import defense_of
from calor_hf.modeling.released import released_copy

logger = logging.getLogger(__name__)


def card_details(
    name: str, source: str | None = None, license: str | None = None, tags: str | list[str] | None = None,
    model_name: str | None = None, finetuned_from: str | None = None, dataset: str | list[str] | None = None,
    language: str | None = None, tasks: str | list[str] | None = None, dataset_tags: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
) -> CardDetails:  # fmt: skip
    """Details of a card from the arguments of ``Trainer.create_model_card``.

    The last part of ``name``, a path or Hub id, counts if ``model_name`` is not given; ``source``, ``finetuned_from``
    and ``dataset`` (or ``dataset_tags``) are Hub ids.

    Raises:
        ValueError: another task than image classification, several data sets, or ``dataset_args``.
    """
    datasets = _listed(dataset_tags) or _listed(dataset)
    if len(datasets) > 1 or dataset_args:
        raise ValueError(
            f"the card names the one data set of the training, got {', '.join(datasets)} and dataset_args="
            f"{dataset_args}; pass dataset= its Hub id, and write the rest into the card"
        )
    if {*_listed(tasks)} - {"image-classification"}:
        raise ValueError(f"tasks must be image-classification, got {', '.join(_listed(tasks))}; leave it out")
    base = model_name or name.rpartition("/")[2], source, license, finetuned_from
    return CardDetails(*base, datasets[0] if datasets else None, _listed(tags), language=language)


def write_card(folder: Path, model: Any, details: CardDetails) -> None:
    """Write the card of a saved model into its folder, or bring it up to date.

    ``model`` is the same in memory, whose defense describes itself; ``details`` are facts that the files do not hold.
    """
    try:
        evidence = gather(folder)
    except StaleRecordError as error:
        logger.warning("%s; the card will not have its numbers", error)
        evidence = gather(folder, use_record=False)
    card = build_card(evidence, _method_of(model), details, base_card(folder / CARD, None))
    write_whole(folder / CARD, str(card).encode())


def publish(
    folder: Path, model: Any, details: CardDetails, args: TrainingArguments, *, repo: str, message: str,
    token: str | None = None, revision: str | None = None, private: bool | None = None,
) -> Any:  # fmt: skip
    """Push a saved model, and return the commit.

    Args:
        folder: The saved model.
        model: The same in memory; its defense describes itself.
        details: Facts that the files do not hold.
        args: Training arguments: the output folder, whose card is kept, and the defaults of what follows.
        repo: Hub id of the repository.
        message: Message of the commit.
        token: None means ``hub_token``, or that of the login.
        revision: Branch. None means ``hub_revision``, or main.
        private: Whether a new repository is private. None means ``hub_private_repo``.

    Raises:
        PermissionError: the Hub refuses.
        PushFailedError: the Hub cannot be reached; its content is untouched, and the same call again continues.
    """
    token, revision = token or args.hub_token, revision or getattr(args, "hub_revision", None)
    with tempfile.TemporaryDirectory() as temporary:
        released, fetched = Path(temporary) / "released", Path(temporary) / "card"
        release = prepare_release(
            released_copy(folder, released),
            _method_of(model),
            details,
            measured_in=folder,
            card=base_card(Path(str(args.output_dir)) / CARD, remote_card(repo, fetched, revision, token)),
            anonymize_labels=not getattr(args, "publish_label_names", False),
            stale_is_error=False,
        )
        private = args.hub_private_repo if private is None else private
        return push_release(release, repo, private=private, revision=revision, token=token, message=message)


def _listed(values: str | list[str] | None) -> list[str]:
    return [values] if isinstance(values, str) else list(values or ())


def _method_of(model: Any) -> str:
    return inspect.getdoc(type(defense_of(model))) or ""
