import pytest

from calor_hf.training import calor_trainer


@pytest.fixture
def always_adapts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the adapt stage of models that learned for a moment, too."""
    monkeypatch.setattr(calor_trainer, "_NOTHING_MOVES", 1.0)
