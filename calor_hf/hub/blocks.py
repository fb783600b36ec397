"""Generated parts of a card between marks, so that text written around them stays."""

import hashlib
import json
import re
from typing import Any

from huggingface_hub import ModelCard

from calor_hf.core.files import reading
from calor_hf.core.validation import content_error, type_error

_BLOCK = re.compile(r"<!-- calor_hf:begin (\w+) -->\n.*?<!-- calor_hf:end \1 -->", re.DOTALL)
_MARK = re.compile(r"<!-- calor_hf:(?:begin|end) \w+ -->")
_OWN = re.compile(r"\n*<!-- calor_hf:own (\w+) -->\n?")


def parse(card: str) -> ModelCard:
    """Parse an existing card.

    Raises:
        ValueError: its metadata is damaged.
    """
    name = "the model card's metadata (the lines between --- at the top)"
    with reading(name):
        found = ModelCard(card)
        metadata = dict(found.data.__dict__)
        metadata.pop("eval_results", None)
    shape = {"tags?": list | None, "license?": str | list | None}
    if problem := content_error(metadata) or type_error(metadata, shape):
        raise ValueError(f"{name} is damaged: {problem}")
    return found


def merge(existing: str | None, made: str) -> str:
    """Return ``existing``, without metadata, with its generated parts replaced by those of ``made``, or ``made`` alone.

    Raises:
        ValueError: a begin or end mark is missing.
    """
    if existing is None:
        return made
    body = _OWN.sub("\n", existing)
    if _MARK.search(_BLOCK.sub("", body)):
        raise ValueError(
            "a generated part of the card has lost its begin or end mark (<!-- calor_hf:begin ... -->); put it back, "
            "or delete the rest of that part"
        )
    new = {match[1]: match[0] for match in _BLOCK.finditer(made)}
    body = _BLOCK.sub(lambda match: new.pop(match[1], ""), body)
    return "\n\n".join([body.rstrip(), *new.values()]) + "\n"


def seal(card: ModelCard) -> ModelCard:
    """Store a digest of the text around the generated parts, for :func:`was_edited`."""
    card.text = f"{_OWN.sub('', card.text).rstrip()}\n\n<!-- calor_hf:own {_digest(card)} -->\n"
    return card


def was_edited(card: ModelCard) -> bool:
    """Whether the card was edited outside its generated parts since it was sealed."""
    mark = _OWN.search(card.text)
    return mark is None or mark[1] != _digest(card)


def same_own_text(a: ModelCard, b: ModelCard) -> bool:
    """Whether two cards are the same outside their generated parts."""
    return _digest(a) == _digest(b)


def _digest(card: ModelCard) -> str:
    data: Any = card.data
    metadata = {name: value for name, value in data.to_dict().items() if name != "model-index"}
    own = "".join(_BLOCK.sub("", _OWN.sub("", card.text)).split())
    return hashlib.sha256((json.dumps(metadata, sort_keys=True, default=str) + own).encode()).hexdigest()[:16]
