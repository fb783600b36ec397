"""Start-up: importing the package against importing what it needs of transformers, and the command against both."""

from benchmarks._paired import paired_ratio, run_python, show

PAIRS = 15

_TIMED = """
import json, sys, time
begin = time.perf_counter()
exec(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - begin}))
"""
_BASE = "from transformers import PreTrainedModel, AutoModelForImageClassification"
_PACKAGE = "import calor_hf"
_HELP = "from calor_hf.cli.main import main; main(['--help'])"


def _seconds(statement: str) -> float:
    return run_python(_TIMED, statement)["seconds"]


def main() -> None:
    """Print both ratios."""
    _seconds(_HELP)  # fills the disk's cache
    show(
        "import calor_hf / import of the transformers classes",
        paired_ratio(lambda: _seconds(_PACKAGE), lambda: _seconds(_BASE), PAIRS),
        "<= 1.15",
        "1: transformers",
    )
    show(
        "calor-hf --help / import calor_hf",
        paired_ratio(lambda: _seconds(_HELP), lambda: _seconds(_PACKAGE), PAIRS),
        "<= 1.15",
        "1: Python alone",
    )
