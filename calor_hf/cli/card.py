"""`calor-hf card`: write the model card of a saved model, or bring it up to date."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calor_hf.core.files import write_whole
from calor_hf.hub.card import CARD, EVIDENCE, RECONSTRUCTIONS
from calor_hf.recipes.common import log_to_terminal
from calor_hf.recipes.release import add_card_options, release_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 where a file is missing, damaged, or about another model.
    """
    parser = argparse.ArgumentParser(
        prog="calor-hf card",
        description="Write README.md into the folder of a model, from what training and an audit measured. What you"
        " write into it, outside the marked parts, stays when the command runs again.",
    )
    parser.add_argument("model", metavar="MODEL_DIR", help="folder of a saved model")
    parser.add_argument("--repo-id", help="Hub id that the card names for loading; default: the folder's name")
    add_card_options(parser)
    options = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    log_to_terminal()
    folder = Path(options.model)
    try:
        with tempfile.TemporaryDirectory() as room:
            release = release_of(options, Path(room), options.repo_id)
            for name in (CARD, EVIDENCE, RECONSTRUCTIONS):
                content = release.files.get(name)
                if content is not None:
                    write_whole(folder / name, content if isinstance(content, bytes) else content.read_bytes())
    except (ValueError, OSError) as error:
        print(f"calor-hf card: {error}", file=sys.stderr)
        return 2
    if release.telling_names:
        print(f"The card names {len(release.telling_names)} classes; if they are people, pass --anonymize-labels.")
    print(f"card: {folder / CARD}   its numbers: {folder / EVIDENCE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
