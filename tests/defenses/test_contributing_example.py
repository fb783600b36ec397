"""The worked example of CONTRIBUTING.md: a tenth defense is one source file and its test."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# As if the file lay in calor_hf/defenses: the registry looks through the package's path.
PLUGIN = """
from pathlib import Path

def pytest_configure(config):
    import calor_hf.defenses

    calor_hf.defenses.__path__.append(str(Path(__file__).parent / "package"))
"""


def test_example_of_contributing_is_found_trained_saved_and_tested(tmp_path: Path) -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    source, test = blocks
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "confidence_penalty.py").write_text(source)
    (tmp_path / "test_confidence_penalty.py").write_text(test)

    contracts = ["tests/defenses/test_defense_contract.py", "tests/training/test_every_defense.py"]
    (tmp_path / "with_example.py").write_text(PLUGIN)
    path = f"{REPOSITORY}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "with_example", "-p", "no:cacheprovider", "-vv",
         "-k", "confidence_penalty", str(tmp_path / "test_confidence_penalty.py"), *contracts],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.findall(r"::(test_\w+)(?:\[[^]]*\])? PASSED", done.stdout)
    expected = {
        "test_loss_matches_hand_computed_value",
        "test_negative_weight_is_refused",
        "test_config_round_trip",
        "test_resumed_equals_uninterrupted",
        "test_saved_model_reloads_with_equal_scores_and_runs_in_a_pipeline",
        "test_to_base_gives_the_stock_model_where_no_module_was_changed",
    }
    assert expected <= set(passed)
    assert passed.count("test_resumed_equals_uninterrupted") == 3  # three kinds of base
