"""Write README.md's tables of methods from the registries.

python docs/method_tables.py
"""

import inspect
import re
from pathlib import Path
from typing import Any

from calor_hf import ATTACKS, DEFENSES

README = Path(__file__).parents[1] / "README.md"
SEES = {"white_box": "weights", "scores": "scores", "labels": "labels"}


def summary_and_source(method: type) -> tuple[str, str]:
    """First docstring line without its full stop, and the source in parentheses at its end (empty if there is none)."""
    line = (inspect.getdoc(method) or "").partition("\n")[0].rstrip(".").replace("``", "`")
    found = re.fullmatch(r"(.*) \(([^()]*\d{4})\)", line)
    return (found[1], found[2]) if found else (line, "")


def tables() -> dict[str, str]:
    """Markdown tables by the name of their place in README.md."""
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
    return {"defenses": _markdown(defenses), "attacks": _markdown(attacks)}


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def with_tables(text: str) -> str:
    """``text`` with every table between its marks ``<!-- table: NAME -->`` and ``<!-- end of table -->`` renewed."""
    for name, table in tables().items():
        before, begin, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("\n<!-- end of table -->")
        if not end:
            raise ValueError(f"expected a place for the table of {name} in the text, got none")
        text = before + begin + table + end + after
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
