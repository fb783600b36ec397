"""The code that travels with a model whose head transformers does not have."""

from pathlib import Path

from calor_hf.core.files import read_json, write_json, write_whole
from calor_hf.modeling import modeling_standalone

MODELING_FILE = Path(modeling_standalone.__file__)


def knows(defense: str) -> bool:
    """Whether the file that travels with a model has the head of this defense."""
    return defense in modeling_standalone.HEADS


def add_code(folder: Path) -> None:
    """Put the code of the head beside a saved model, and name it in its configuration."""
    config_file = folder / "config.json"
    config = read_json(config_file, {"model_type": str})
    name = "CALoR" if config["model_type"] == "calor" else "Defended"
    config["auto_map"] = {
        "AutoConfig": f"{MODELING_FILE.stem}.{name}Config",
        "AutoModelForImageClassification": f"{MODELING_FILE.stem}.{name}ForImageClassification",
    }
    write_whole(folder / MODELING_FILE.name, MODELING_FILE.read_bytes())
    write_json(config_file, config, indent=2, sort_keys=True)
