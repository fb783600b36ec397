"""The accelerate files for sharded training: read by accelerate's own parser, and launched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

ROOT = Path(__file__).parents[2]
FILES = {"fsdp": DistributedType.FSDP, "deepspeed": DistributedType.DEEPSPEED}


@pytest.mark.parametrize(("name", "kind"), FILES.items())
def test_the_file_is_understood(name: str, kind: DistributedType) -> None:
    found = load_config_from_file(str(ROOT / "examples" / "accelerate" / f"{name}.yaml"))
    assert found.distributed_type == kind
    options = vars(launch_command_parser().parse_args(["script.py"]))
    settings = getattr(found, f"{name}_config")
    unknown = [key for key in settings if key not in options]
    assert unknown == []


@pytest.mark.slow
def test_two_processes_train_with_the_fsdp_file(tmp_path: Path) -> None:
    # accelerate shards on accelerators alone: without one this is the launcher, the file and both stages.
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "examples" / "accelerate" / "fsdp.yaml")]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--module", "calor_hf.cli.train", "--use-cpu"]
    words = ["--num-identities", "8", "--num-train-epochs", "1", "--adapt-epochs", "1", "--max-accuracy-drop", "100"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launch, *words, "--report-to", "none", "--output-dir", str(tmp_path / "out")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert made["steps"]["fit"] > 0
    assert len(list((tmp_path / "out").glob("checkpoint-*/rng_state_1.pth"))) > 0  # the second process was there
