"""Write the card of a saved model, and publish the model with it."""

import inspect
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from calor_hf.core.config import setting
from calor_hf.core.files import write_whole
from calor_hf.defenses import DEFENSES
from calor_hf.hub.card import CARD, EVIDENCE, RECONSTRUCTIONS, CardDetails, base_card
from calor_hf.hub.evidence import read_model
from calor_hf.hub.push import push_release, remote_card
from calor_hf.hub.release import Release, prepare_release
from calor_hf.modeling.released import released_copy
from calor_hf.recipes.common import log_to_terminal


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions:
    """Options of a release: facts and choices for its card."""

    model: Path = field(metadata={"positional": True, "metavar": "MODEL_DIR", "help": "folder of a saved model"})
    report: str | None = setting(
        None, "audit of this model: its folder or report.json; default: the card says there was no audit"
    )
    license: str | None = setting(None, "id of the weights' license, such as apache-2.0")
    base_model: str | None = setting(None, "Hub id of the base model; default: as training recorded")
    dataset: str | None = setting(None, "Hub id of the data; default: as training recorded, except a folder")
    tags: list[str] = setting([], "more tags for the metadata")
    include_reconstructions: bool = setting(
        False, "show the strongest attack's reconstructions of real people; synthetic faces are always shown"
    )
    anonymize_labels: bool = setting(False, "numbers instead of class names", exclusive="names")
    publish_label_names: bool = setting(False, "publish class names, even if they are people's", exclusive="names")


@dataclass(frozen=True, kw_only=True)
class CardOptions(ReleaseOptions):
    """Options of :func:`card`."""

    repo_id: str | None = setting(None, "Hub id that the card names for loading; default: the folder's name")


@dataclass(frozen=True, kw_only=True)
class PushOptions(ReleaseOptions):
    """Options of :func:`push`."""

    repo_id: str = field(metadata={"positional": True, "metavar": "REPO_ID", "help": "user/name on the Hub"})
    private: bool = setting(
        False, "make a new repository private; default if reconstructions show real people", exclusive="visibility"
    )
    public: bool = setting(
        False, "make a new repository public; default: your account's setting", exclusive="visibility"
    )
    revision: str | None = setting(None, "branch, created if missing; default: main", flags=("--revision", "--branch"))
    message: str = setting("Upload model", "message of the commit")
    dry_run: bool = setting(False, "show what would be published, offline")


def card(options: CardOptions) -> Path:
    """Write ``README.md`` into the folder of a model, with the measurements of training and audit.

    Returns:
        Path of the card.

    Raises:
        FileNotFoundError: no model or report.
        ValueError: a file is damaged or about another model.
    """
    log_to_terminal()
    folder = options.model
    with tempfile.TemporaryDirectory() as workspace:
        release = release_of(options, Path(workspace), options.repo_id)
        for name in (CARD, EVIDENCE, RECONSTRUCTIONS):
            content = release.files.get(name)
            if content is not None:
                write_whole(folder / name, content if isinstance(content, bytes) else content.read_bytes())
    if release.telling_names:
        print(f"The card names {len(release.telling_names)} classes; if they are people, pass --anonymize-labels.")
    print(f"card: {folder / CARD}   its numbers: {folder / EVIDENCE}")
    return folder / CARD


def push(options: PushOptions) -> str | None:
    """Publish a saved model with its card, and no other file of its folder, in one commit.

    Returns:
        Address of the commit, or None for a dry run.

    Raises:
        PushFailedError: the Hub could not be reached, or failed.
        FileNotFoundError: no model or report.
        ValueError: class names that were not decided on, a damaged file, or one about another model.
    """
    log_to_terminal()
    names = read_model(options.model).telling_names
    if names and not (options.anonymize_labels or options.publish_label_names):
        raise ValueError(
            f"the model has {names} class names, which may be people's; pass --anonymize-labels to publish numbers "
            "instead, or --publish-label-names"
        )
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        remote = None if options.dry_run else remote_card(options.repo_id, workspace / "card", options.revision)
        release = release_of(options, workspace, options.repo_id, remote)
        print(f"to {options.repo_id}:\n{release.table()}")
        if release.shows_people:
            print("Rebuilt images of real people are among them; a new repository is private, unless --public.")
        if options.dry_run:
            print("Nothing was published (--dry-run).")
            return None
        private = options.private or (False if options.public else None)
        commit = push_release(
            release, options.repo_id, private=private, revision=options.revision, message=options.message
        )
    print(f"published: {commit.commit_url}")
    return str(commit.commit_url)


def release_of(options: ReleaseOptions, workspace: Path, repo_id: str | None, remote: Path | None = None) -> Release:
    """Prepare the release of a saved model.

    Args:
        options: Facts and choices for the card.
        workspace: Empty folder for temporary files.
        repo_id: Hub id that the card names; None if it is not known yet.
        remote: The card that is on the Hub.

    Raises:
        FileNotFoundError: no model or report.
        ValueError: a file is damaged or about another model.
    """
    folder = options.model
    known = read_model(folder)
    name = (repo_id or folder.resolve().name).rpartition("/")[2]
    details = CardDetails(name, repo_id, options.license, options.base_model, options.dataset, options.tags)
    # The defense describes itself, unless another package registers it.
    method = inspect.getdoc(DEFENSES.get(known.defense)) or "" if known.defense in DEFENSES.names() else ""
    return prepare_release(
        folder if repo_id is None else released_copy(folder, workspace / "released"), method, details,
        measured_in=folder, report=options.report, card=base_card(folder / CARD, remote),
        anonymize_labels=options.anonymize_labels, include_reconstructions=options.include_reconstructions,
    )  # fmt: skip
