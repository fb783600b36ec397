"""A pipeline that a stranger pushed serves as prior by its Hub id."""

from pathlib import Path

import pytest

from tests.hub.local_hub import LocalHub
from tests.hub.test_push import python

PUSH_AND_LOAD = """
import sys
from pathlib import Path
import numpy as np
import torch
from calor_hf import load_generator
from tests.generators.test_diffusers import pipeline
folder = Path(sys.argv[1])
made = pipeline(folder, safe="bin" not in sys.argv)
made.push_to_hub("me/faces", safe_serialization="bin" not in sys.argv)
here, there = (load_generator(f"diffusers:{place},decode_steps=2") for place in (folder, "me/faces"))
latents = here.sample_latents(2, np.random.default_rng(0)).float()
print(torch.equal(here(latents), there(latents)), there.name, there.image_size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_pushed_pipeline_is_a_prior(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="pipelines need the extra calor-hf[diffusers]")
    with LocalHub() as hub:
        done = python(hub, tmp_path, "-c", PUSH_AND_LOAD, str(tmp_path / "pipeline"), kind)
        assert done.returncode == 0, done.stderr[-3000:]
        pushed = hub.every_file("me/faces")["main"][-1]
    assert done.stdout.splitlines()[-1] == "True diffusers 16"
    assert f"unet/diffusion_pytorch_model.{kind}" in pushed
