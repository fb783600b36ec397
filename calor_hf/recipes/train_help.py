"""Help of `calor-hf train`: its own options and the common training arguments in groups, all others on request."""

import argparse
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import Field
from types import MappingProxyType
from typing import Any, get_origin

from transformers import HfArgumentParser

from calor_hf.core.config_file import CONFIG, CONFIG_HELP

COMMON = (
    "num_train_epochs", "max_steps", "learning_rate", "head_learning_rate", "head_only", "lr_drop_epochs",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "per_device_train_batch_size",
    "gradient_accumulation_steps", "class_chunk", "bf16", "dataloader_num_workers", "seed",
)  # fmt: skip
ADAPT = (
    "adapt_epochs", "adapt_steps", "adapt_learning_rate", "adapt_start_epoch", "adapt_freeze_batch_norm",
    "adapt_only_last_layer", "max_accuracy_drop", "confidence_tolerance", "confidence_samples", "accept_unadapted",
)  # fmt: skip
RUN = (
    "output_dir", "config", "resume", "overwrite", "report_to", "save_total_limit", "push_to_hub", "hub_model_id",
    "hub_strategy", "push_unfinished", "publish_label_names",
)  # fmt: skip


class TrainParser(HfArgumentParser):
    """Parser of dataclasses whose ``--help`` shows one line for each option of some groups, and ``--help-all`` all.

    Args:
        groups: Names of options by the title of their group; options can be added to the parser later.
        options: As of ``HfArgumentParser``.
    """

    def __init__(self, *dataclasses: Any, groups: Mapping[str, Sequence[str]], **options: Any) -> None:
        usage = "calor-hf train [options]"
        super().__init__(
            *dataclasses, prog="calor-hf train", usage=usage, add_help=False, formatter_class=_Dashed, **options
        )
        self.groups = groups
        self.add_argument("-h", "--help", action=_ShortHelp, nargs=0, default=argparse.SUPPRESS)
        self.add_argument("--help-all", action="help", help="explain all options, and those of TrainingArguments too")
        for action in self._actions:
            if action.dest == "optim_args":
                action.metavar = "NAME=VALUE"
            kind: Any = get_origin(action.type) or action.type
            if kind is dict or hasattr(kind, "__dataclass_fields__"):  # transformers would call it with the word
                action.type = _json_object(kind)
        self.add_argument(CONFIG, default=argparse.SUPPRESS, metavar="FILE", help=CONFIG_HELP)

    @staticmethod
    def _parse_dataclass_field(parser: Any, field: Field[Any]) -> None:
        """Add an option; ``known`` in its metadata is not for the parser."""
        field = copy(field)
        field.metadata = MappingProxyType({key: one for key, one in field.metadata.items() if key != "known"})
        HfArgumentParser._parse_dataclass_field(parser, field)

    def short_help(self) -> str:
        """Return a line for each option of the groups, as wide as the terminal."""
        actions = {action.dest: action for action in reversed(self._actions)}  # the first: not its --no- form
        lines = [f"usage: {self.usage}", "", *textwrap.wrap(self.description or "", _width())]
        for title, names in self.groups.items():
            lines += ["", f"{title}:", *(_line(actions[name]) for name in names)]
        rest = "--help-all explains these, and all other arguments of transformers.TrainingArguments."
        return "\n".join([*lines, "", *textwrap.wrap(f"{rest} {self.epilog or ''}", _width()), ""])


def _json_object(kind: Callable[..., Any]) -> Callable[[str], Any]:
    """Type of an option that takes a JSON object, as the arguments of ``kind``."""

    def read(word: str) -> Any:
        try:
            return kind(**json.loads(word))
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f'expected JSON such as {{"name": 1}}, got {word} ({error})') from error

    return read


class _ShortHelp(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.short_help(), end="")
        parser.exit()


class _Dashed(argparse.ArgumentDefaultsHelpFormatter):
    """Shows ``--foo-bar`` and not its twin ``--foo_bar``."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names, kept = action.option_strings, [name for name in action.option_strings if "_" not in name]
        action.option_strings = kept
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = names


def _line(action: argparse.Action) -> str:
    """One option: its name, the first sentence of its help, and its default."""
    name = next(name for name in action.option_strings if "_" not in name)
    shown = "" if action.default in (None, "", [], False, argparse.SUPPRESS) else f" ({_text(action.default)})"
    text = (action.help or "").replace("%%", "%").rstrip(".")
    sentence = re.split(r"(?<!\.)\. ", text)[0]
    return f"  {name:<33} {textwrap.shorten(sentence, _width() - 36 - len(shown), placeholder=' ...')}{shown}"


def _text(default: Any) -> str:
    return str(getattr(default, "value", default))


def _width() -> int:
    return max(80, min(120, shutil.get_terminal_size((100, 24)).columns))
