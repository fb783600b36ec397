"""The README's first command, unchanged but for its length, with ViT-B/16 (random weights) from the local Hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import ViTConfig, ViTForImageClassification

from calor_hf import load_synthetic_faces
from tests.hub.local_hub import LocalHub
from tests.hub.test_push import HUB, MODEL, client

ID = "google/vit-base-patch16-224"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_calor.py"


@pytest.mark.slow
def test_training_vit_base_from_the_hub_and_pushing_it(tmp_path: Path) -> None:
    served = tmp_path / "served" / ID
    ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(served)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}}
    (served / "preprocessor_config.json").write_text(json.dumps(processor))
    for number, row in enumerate(load_synthetic_faces(2, 6, image_size=64)):
        person = tmp_path / "faces" / f"Person {'AB'[row['label']]}"
        person.mkdir(parents=True, exist_ok=True)
        row["image"].save(person / f"{number}.png")
    with LocalHub(tmp_path / "served") as hub:
        words = [
            sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", str(EXAMPLE),
            "--model", ID, "--dataset", str(tmp_path / "faces"), "--output-dir", str(tmp_path / "vit"),
            "--max-steps", "2", "--adapt-steps", "1", "--per-device-train-batch-size", "2", "--use-cpu", "--optim",
            "sgd", "--max-accuracy-drop", "100", "--eval-strategy", "steps", "--save-strategy", "steps",
            "--eval-steps", "1", "--save-steps", "1", "--save-total-limit", "1",
            "--push-to-hub", "--hub-model-id", "me/vit", "--hub-private-repo", "true", "--hub-strategy", "every_save",
        ]  # fmt: skip
        done = subprocess.run(words, env=client(hub, tmp_path), capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr[-3000:]
        history = hub.every_file("me/vit")["main"]
        assert [sorted({*files} - {"curves.png"}) for files in history] == [HUB, MODEL]
        assert hub.repos["me/vit"].private
        card = hub.read("me/vit", "README.md").decode()
        config = json.loads(hub.read("me/vit", "config.json"))
    assert f"base_model: {ID}" in card
    assert str(tmp_path) not in card
    assert set(config["id2label"].values()) == {"LABEL_0", "LABEL_1"}
    assert config["base_config"]["_name_or_path"] == ID
