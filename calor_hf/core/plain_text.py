"""Untrusted text, such as class names, made safe for Markdown and HTML, and tables of it for the terminal."""

import html
import re
from collections.abc import Sequence
from typing import Any

# An underscore inside a word, and an @ that no name follows, mean nothing in Markdown.
_SPECIAL = re.compile(r"([\\`*{}\[\]|#~!$]|(?<![^\W_])_|_(?![^\W_]))")
_MENTION = re.compile(r"@(?=[^\W\d])")
# Bidirectional controls reverse the text that follows: "gpj.exe" shown as "exe.jpg".
_BIDIRECTIONAL = re.compile("[\u202a-\u202e\u2066-\u2069]")


def unturned(value: str) -> str:
    """Return ``value`` without bidirectional control characters and NUL."""
    return _BIDIRECTIONAL.sub("", value).replace("\0", "")


def one_line(value: object) -> str:
    """Return ``value`` on one line, :func:`unturned`."""
    return " ".join(unturned(str(value)).split())


def markdown_text(value: object) -> str:
    """Return ``value`` escaped for Markdown, tables included: no tag, link, code or emphasis results from it."""
    line = html.escape(one_line(value), quote=False)
    return _MENTION.sub("&#64;", _SPECIAL.sub(r"\\\1", line).replace("://", ":&#47;&#47;"))


def without_paths(value: Any) -> Any:
    """Return a plain value without paths and Hub ids, which name users: an ellipsis for words with a slash."""
    if isinstance(value, str):
        return re.sub(r"\S*[/\\]\S*", lambda word: "…" if re.search(r"[^\W\d]", word[0]) else word[0], value)
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    return [without_paths(item) for item in value] if isinstance(value, list | tuple) else value


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
