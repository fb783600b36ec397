"""Checksum of a report: who edits a number in it is found out."""

import hashlib
import json
import math
from typing import Any


def plain(value: Any) -> Any:
    """Only what JSON has: text keys, null for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a dictionary of plain values, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
