"""What `calor-hf card` and `calor-hf push` share."""

import argparse
import inspect
from pathlib import Path

from calor_hf.defenses import DEFENSES
from calor_hf.hub.card import CARD, CardDetails, base_card
from calor_hf.hub.evidence import ModelInfo, read_model
from calor_hf.hub.release import Release, prepare_release
from calor_hf.modeling.released import released_copy


def add_card_options(parser: argparse.ArgumentParser) -> None:
    """Options about what the card says."""
    add = parser.add_argument
    add("--report", help="report.json of an audit of this model, or the audit's folder; default: the card says that it"
        " was not audited")  # fmt: skip
    add("--license", help="id of the weights' license, such as apache-2.0")
    add("--base-model", help="Hub id of the base model; default: what training noted")
    add("--dataset", help="Hub id of the data; default: what training noted; a folder is never named")
    add("--tags", nargs="*", default=[], help="more tags for the metadata")
    add("--include-reconstructions", action="store_true", help="show what the strongest attack rebuilt of real people;"
        " of drawn faces it is shown anyway")  # fmt: skip
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--anonymize-labels", action="store_true", help="numbers instead of class names")
    names.add_argument("--publish-label-names", action="store_true", help="class names as they are, although they may"
                       " be people's")  # fmt: skip


def release_of(options: argparse.Namespace, room: Path, source: str | None, remote: Path | None = None) -> Release:
    """The release of a saved model.

    Args:
        options: With ``model`` and those of :func:`add_card_options`.
        room: Empty folder to work in.
        source: Hub id that the card names; None: not known yet.
        remote: The card that is on the Hub.

    Raises:
        FileNotFoundError: no model or report.
        ValueError: a file is damaged or about another model.
    """
    folder = Path(options.model)
    known = read_model(folder)
    name = (source or folder.resolve().name).rpartition("/")[2]
    details = CardDetails(name, source, options.license, options.base_model, options.dataset, options.tags)
    return prepare_release(
        folder if source is None else released_copy(folder, room / "released"),
        method_of(known),
        details,
        measured_in=folder,
        report=options.report,
        card=base_card(folder / CARD, remote),
        anonymize_labels=options.anonymize_labels,
        include_reconstructions=options.include_reconstructions,
    )


def method_of(model: ModelInfo) -> str:
    """Docstring of a model's defense; empty where it is registered by someone else's package."""
    name = model.defense
    return inspect.getdoc(DEFENSES.get(name)) or "" if name in DEFENSES.names() else ""
