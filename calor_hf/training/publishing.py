"""Publishing a trained model: the model, its image processor and its card, in one commit, and nothing else."""

import inspect
import logging
import tempfile
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy

from calor_hf.core.files import write_whole
from calor_hf.hub.card import CARD, CardDetails, base_card, build_card
from calor_hf.hub.evidence import StaleRecordError, gather
from calor_hf.hub.push import PushFailedError, push_release, remote_card
from calor_hf.hub.release import prepare_release
from calor_hf.modeling.base_model import defense_of
from calor_hf.modeling.released import released_copy
from calor_hf.training.measuring import MeasuringTrainer

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


def _listed(values: str | list[str] | None) -> list[str]:
    return [values] if isinstance(values, str) else list(values or ())


def _method_of(model: Any) -> str:
    return inspect.getdoc(type(defense_of(model))) or ""


class PublishingTrainer(MeasuringTrainer):
    """``Trainer`` that pushes once training has ended: the model, its image processor and its card alone."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the model, its image processor and its card in one commit; all processes have to call it.

        Arguments are those of ``Trainer.push_to_hub``, with ``private`` (None means ``hub_private_repo``) and those of
        :meth:`create_model_card`. When this returns, the push has ended, whatever ``blocking`` says.

        Returns:
            The commit; None in other processes than the first, and during training (with a warning).

        Raises:
            PermissionError: the Hub refuses.
            PushFailedError: the Hub cannot be reached; its content is untouched, and the same call again continues.
        """
        if self.is_in_train and not getattr(self.args, "push_unfinished", False):
            logger.warning("not pushed: training is not over, so the model is not defended yet")
            return None
        folder = Path(self.args.output_dir)
        self.save_model(_internal_call=True)
        self.save_record(folder)
        if not self.is_world_process_zero():
            return None
        return self._publish(folder, commit_message or "End of training", kwargs, token, revision, private)

    def create_model_card(self, **kwargs: Any) -> None:
        """Write ``README.md`` into the output folder, or bring it up to date.

        Arguments are those of ``Trainer.create_model_card``, with the limits of :func:`card_details`.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        details = card_details(folder.absolute().name, **kwargs)
        try:
            evidence = gather(folder)
        except StaleRecordError as error:
            logger.warning("%s; the card will not have its numbers", error)
            evidence = gather(folder, use_record=False)
        card = build_card(evidence, _method_of(self.model), details, base_card(folder / CARD, None))
        write_whole(folder / CARD, str(card).encode())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        unfinished = getattr(self.args, "push_unfinished", False) and self.args.hub_strategy != HubStrategy.END
        if not unfinished or not self.is_world_process_zero():
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._publish(Path(checkpoint_folder), message, {"tags": ["unfinished-training"]})
        except PushFailedError as error:
            logger.warning("%s", error)

    def _publish(
        self, folder: Path, message: str, details: dict[str, Any],
        token: str | None = None, revision: str | None = None, private: bool | None = None,
    ) -> Any:  # fmt: skip
        """Push the model saved in ``folder``, with the card of the output folder, and return the commit."""
        args, output_dir = self.args, Path(str(self.args.output_dir))
        repo = getattr(self, "hub_model_id", None) or args.hub_model_id or output_dir.absolute().name
        token, revision = token or args.hub_token, revision or getattr(args, "hub_revision", None)
        with tempfile.TemporaryDirectory() as temporary:
            released, fetched = Path(temporary) / "released", Path(temporary) / "card"
            release = prepare_release(
                released_copy(folder, released),
                _method_of(self.model),
                card_details(repo, repo, **details),
                measured_in=folder,
                card=base_card(output_dir / CARD, remote_card(repo, fetched, revision, token)),
                anonymize_labels=not getattr(args, "publish_label_names", False),
                stale_is_error=False,
            )
            private = args.hub_private_repo if private is None else private
            return push_release(release, repo, private=private, revision=revision, token=token, message=message)
