"""Text of others, such as class names, for a place where marks mean something: it stays text."""

import html
import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]|#~!$])")
# They turn what follows around: a name that shows "gpj.exe" as "exe.jpg" is a trap, not a name.
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")


def unturned(value: str) -> str:
    """``value`` without the marks that turn the direction of what follows, and without NUL."""
    return _TURNING.sub("", value).replace("\0", "")


def one_line(value: object) -> str:
    """``value`` on one line, :func:`unturned`."""
    return " ".join(unturned(str(value)).split())


def markdown_text(value: object) -> str:
    """``value`` for a place in Markdown, tables included: no tag, link, code or emphasis comes of it."""
    line = html.escape(one_line(value), quote=False)
    return _SPECIAL.sub(r"\\\1", line).replace("://", ":&#47;&#47;").replace("@", "&#64;")
