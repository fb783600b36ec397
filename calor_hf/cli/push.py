"""`calor-hf push`: publish a saved model with its card, and nothing else that lies in its folder."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calor_hf.core.stop_request import sigterm_as_ctrl_c
from calor_hf.hub.evidence import read_model
from calor_hf.hub.push import PushFailedError, push_release, remote_card
from calor_hf.recipes.common import log_to_terminal
from calor_hf.recipes.release import add_card_options, release_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 where the Hub cannot be reached; 2 for options or files that are refused, or a Hub that refuses; 130
        after Ctrl-C or SIGTERM.
    """
    options = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    log_to_terminal()
    try:
        with sigterm_as_ctrl_c():
            return _run(options)
    except KeyboardInterrupt:
        print(
            "\nstopped; the repository holds all of this push or none of it: the same command again goes on",
            file=sys.stderr,
        )
        return 130
    except PushFailedError as error:
        print(f"calor-hf push: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"calor-hf push: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf push",
        description="Publish a saved model on the Hub: weights, configuration, image processor and a card with what was"
        " measured; checkpoints, optimizer, logs and images stay. One commit, which is whole or not there.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL_DIR", help="folder of a saved model")
    add("repo_id", metavar="REPO_ID", help="user/name on the Hub")
    add_card_options(parser)
    visibility = parser.add_mutually_exclusive_group()
    say = visibility.add_argument
    say("--private", action="store_true", default=None, help="a new repository is private; the default with"
        " reconstructions of real people")  # fmt: skip
    say("--public", dest="private", action="store_false", help="it is public; default: as your account has it")
    add("--revision", "--branch", help="branch, made if it is not there; default: main")
    add("--message", default="Upload model", help="of the commit")
    add("--dry-run", action="store_true", help="show what would be published, and reach for nothing")
    return parser


def _run(options: argparse.Namespace) -> int:
    names = read_model(Path(options.model)).telling_names
    if names and not (options.anonymize_labels or options.publish_label_names):
        raise ValueError(
            f"the model has {names} class names, which may be people's; pass --anonymize-labels to put numbers in "
            "their place, or --publish-label-names"
        )
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        remote = None if options.dry_run else remote_card(options.repo_id, room / "card", options.revision)
        release = release_of(options, room, options.repo_id, remote)
        print(f"to {options.repo_id}:\n{release.table()}")
        if release.shows_people:
            print("Rebuilt images of real people are among them; a new repository is private, unless --public.")
        if options.dry_run:
            print("Nothing was published (--dry-run).")
            return 0
        commit = push_release(
            release, options.repo_id, private=options.private, revision=options.revision, message=options.message
        )
    print(f"published: {commit.commit_url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
