"""Untrusted text, such as class names, made safe for Markdown and HTML."""

import html
import re

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
