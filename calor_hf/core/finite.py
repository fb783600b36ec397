"""Check of network outputs for NaN and infinity."""

from torch import Tensor


def check_rows_finite(rows: Tensor, what: str) -> None:
    """Raise ``FloatingPointError`` if any row of (images, ...) is not finite; ``what`` names them in the message."""
    bad = int((~rows.reshape(len(rows), -1).isfinite().all(dim=1)).sum()) if len(rows) else 0
    if bad:
        raise FloatingPointError(
            f"the {what} of {bad} of {len(rows)} images are not finite; look for images or weights with NaN"
        )
