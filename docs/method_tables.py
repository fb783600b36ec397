"""Write the generated tables of the guides from the registries and from what the code says of itself.

python docs/method_tables.py
"""

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calor_hf import ATTACKS, DEFENSES
from calor_hf.training.fields import AS_IN_TRAINER, DIFFERENCES, PASSED_ON, REFUSED, how
from calor_hf.training.parameters import PARAMETERS

DEFENSES_PAGE, ATTACKS_PAGE, TRAINER_PAGE = (
    Path(__file__).parent / name for name in ("choose_a_defense.md", "audit.md", "trainer.md")
)
SEES = {"white_box": "weights", "scores": "scores", "labels": "labels"}


def summary_and_source(method: type) -> tuple[str, str]:
    """First docstring line without its full stop, and the source in parentheses at its end (empty without one)."""
    line = (inspect.getdoc(method) or "").partition("\n")[0].rstrip(".").replace("``", "`")
    found = re.fullmatch(r"(.*) \(([^()]*\d{4})\)", line)
    return (found[1], found[2]) if found else (line, "")


def tables() -> dict[Path, dict[str, str]]:
    """Markdown tables by file and by the name of their place in it."""
    defenses: list[tuple[str, ...]] = [("name", "what it does", "classifier", "source")]
    for name in DEFENSES.names():
        defense: Any = DEFENSES.get(name)
        summary, source = summary_and_source(defense)
        head = "replaced" if defense(defense.config_class()).own_head else "kept"
        defenses.append((f"`{name}`", summary, head, source))
    attacks: list[tuple[str, ...]] = [("attack", "what it does", "sees", "source")]
    for name in ATTACKS.names():
        attack = ATTACKS.get(name)
        summary, source = summary_and_source(attack)
        attacks.append((f"`{name}`", summary, SEES[attack.access], source))
    parameters = [("parameter", "how it acts"), *((f"`{name}`", text) for name, text in PARAMETERS.items())]
    return {
        DEFENSES_PAGE: {"defenses": _markdown(defenses)},
        ATTACKS_PAGE: {"attacks": _markdown(attacks)},
        TRAINER_PAGE: {"parameters": _markdown(parameters), "arguments": _markdown(_arguments())},
    }


def _arguments() -> list[tuple[str, str]]:
    """Rows of the fields of the training arguments, those that act alike in one row, the long rows last."""
    names: dict[str, list[str]] = {}
    for name in (*DIFFERENCES, *REFUSED, *sorted(PASSED_ON), *sorted(AS_IN_TRAINER)):
        names.setdefault(how(name), []).append(f"`{name}`")
    rows = [(", ".join(dict.fromkeys(alike)), text) for text, alike in names.items()]
    return [("field", "how it acts"), *rows]


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def with_tables(file: Path, text: str) -> str:
    """``text`` of ``file`` with the tables between ``<!-- table: NAME -->`` and ``<!-- end of table -->`` renewed."""
    for name, table in tables()[file].items():
        before, begin, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end of table -->")
        if not end:
            raise ValueError(f"expected a place for the table of {name} in the text, got none")
        text = f"{before}{begin}{table}\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in tables():
        page.write_text(with_tables(page, page.read_text(encoding="utf-8")), encoding="utf-8")
