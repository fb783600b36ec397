"""Generated parts of a card between marks, so that what a person wrote around them stays; text that is only text."""

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
    """A card that someone wrote.

    Raises:
        ValueError: its metadata are damaged.
    """
    name = "the model card's metadata (the lines between --- at its top)"
    with reading(name):
        found = ModelCard(card)
        metadata = dict(found.data.__dict__)
        metadata.pop("eval_results", None)
    problem = content_error(metadata) or type_error(metadata, {"tags?": list | None, "license?": str | list | None})
    if problem:
        raise ValueError(f"{name} are damaged: {problem}")
    return found


def merge(existing: str | None, blocks: dict[str, str], title: str) -> str:
    """Text of a card: the blocks in their places in ``existing``, new ones at its end.

    Args:
        existing: Text of the card so far, without metadata; None: there is none.
        blocks: Content by name, in order; one that is empty is taken out.
        title: Of a new card.

    Raises:
        ValueError: a mark without its partner.
    """
    body = f"# {title}\n" if existing is None else _OWN.sub("\n", existing)
    if _MARK.search(_BLOCK.sub("", body)):
        raise ValueError(
            "a generated part of the card has lost its begin or end mark (<!-- calor_hf:begin ... -->); put it back, "
            "or delete the rest of that part"
        )
    for name in {match[1] for match in _BLOCK.finditer(body)} - {name for name, content in blocks.items() if content}:
        body = _block_of(name).sub("", body)
    for name, content in blocks.items():
        if not content:
            continue
        whole = f"<!-- calor_hf:begin {name} -->\n{content.strip()}\n<!-- calor_hf:end {name} -->"
        if _block_of(name).search(body):
            body = _block_of(name).sub(whole.replace("\\", r"\\"), body, count=1)
        else:
            body = f"{body.rstrip()}\n\n{whole}\n"
    return body


def seal(card: ModelCard) -> ModelCard:
    """Note in the card what a person had written into it, so that :func:`was_edited` can tell later."""
    card.text = f"{_OWN.sub('', card.text).rstrip()}\n\n<!-- calor_hf:own {_digest(card)} -->\n"
    return card


def was_edited(card: ModelCard) -> bool:
    """Whether someone wrote into the card, outside the generated parts, since it was sealed."""
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


def _block_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- calor_hf:begin {name} -->\n.*?<!-- calor_hf:end {name} -->", re.DOTALL)
