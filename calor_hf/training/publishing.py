"""A Trainer that publishes what is finished, and of that only what is on the list."""

import inspect
import logging
import tempfile
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from calor_hf.core.files import write_whole
from calor_hf.defenses.base import Defense
from calor_hf.defenses.none import NoDefense
from calor_hf.hub.card import CARD, CardDetails, base_card, build_card
from calor_hf.hub.evidence import StaleRecordError, gather
from calor_hf.hub.push import PushFailedError, push_release, remote_card
from calor_hf.hub.release import prepare_release
from calor_hf.modeling.released import released_copy

logger = logging.getLogger(__name__)


class PublishingTrainer(Trainer):
    """``Trainer`` whose pushes hold the model, its image processor and its card, in one commit, once it is finished.

    The Trainer of transformers uploads the output folder but for some names, from the first checkpoint on.
    """

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the model, its image processor and its card; all processes have to call it.

        Args:
            commit_message: Of the commit.
            blocking: Kept for transformers; the push is over when this returns.
            token: Of the Hub; None: ``hub_token``, or that of the login.
            revision: Branch; None: ``hub_revision``, or main.
            private: Of a new repository; None: ``hub_private_repo``.
            kwargs: As for :meth:`create_model_card`.

        Returns:
            The commit; None in other processes than the first, and while training goes on (with a warning).

        Raises:
            PermissionError: the Hub refuses.
            PushFailedError: it cannot be reached; what it had is untouched, and the same call again goes on.
        """
        if self.is_in_train and not self._pushes_unfinished:
            logger.warning("not pushed: training is not over, so the model is not defended yet")
            return None
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return self._push(Path(self.args.output_dir), commit_message, token, revision, private, **kwargs)

    def create_model_card(self, **kwargs: Any) -> None:
        """Write ``README.md`` into the output folder, or bring it up to date.

        Args:
            kwargs: ``license``, ``tags``, ``model_name``, ``finetuned_from`` and ``dataset``, as ``Trainer`` has them.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        try:
            evidence = gather(folder)
        except StaleRecordError as error:
            logger.warning("%s; the card will not have its numbers", error)
            evidence = gather(folder, use_record=False)
        existing = base_card(folder / CARD, None)
        card = build_card(evidence, self._method, self._details(None, **kwargs), existing)
        write_whole(folder / CARD, str(card).encode())

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.args.hub_strategy == HubStrategy.END or not self._pushes_unfinished or not self.is_world_process_zero():
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._push(Path(checkpoint_folder), message, None, None, None, tags=["unfinished-training"])
        except PushFailedError as error:
            logger.warning("%s", error)

    def _push(
        self, folder: Path, message: str | None, token: str | None, revision: str | None, private: bool | None,
        **details: Any,
    ) -> Any:  # fmt: skip
        args = self.args
        repo = getattr(self, "hub_model_id", None) or args.hub_model_id or Path(args.output_dir).absolute().name
        token, revision = token or args.hub_token, revision or getattr(args, "hub_revision", None)
        with tempfile.TemporaryDirectory() as room:
            released, fetched = Path(room) / "released", Path(room) / "card"
            release = prepare_release(
                released_copy(folder, released),
                self._method,
                self._details(repo, **details),
                measured_in=folder,
                card=base_card(Path(args.output_dir) / CARD, remote_card(repo, fetched, revision, token)),
                anonymize_labels=not getattr(args, "publish_label_names", False),
                stale_is_error=False,
            )
            return push_release(
                release,
                repo,
                private=args.hub_private_repo if private is None else private,
                revision=revision,
                token=token,
                message=message or "End of training",
            )

    @property
    def _pushes_unfinished(self) -> bool:
        return bool(getattr(self.args, "push_unfinished", False))

    @property
    def _method(self) -> str:
        defense = getattr(self.model, "defense", None)
        return inspect.getdoc(type(defense) if isinstance(defense, Defense) else NoDefense) or ""

    def _details(
        self,
        source: str | None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | None = None,
    ) -> CardDetails:
        name = model_name or (source or Path(self.args.output_dir).absolute().name).rpartition("/")[2]
        return CardDetails(
            name,
            source,
            license,
            finetuned_from,
            dataset,
            [tags] if isinstance(tags, str) else tags or (),
        )
