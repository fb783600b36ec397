"""calor_hf: fine-tune image classifiers on private images so that less of the images can be rebuilt from them.

CALoR models are registered with the Auto classes of transformers as soon as both packages are imported. The names below
are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from calor_hf._auto_classes import register_with_transformers
from calor_hf._version import __version__

if TYPE_CHECKING:
    from calor_hf.attacks import ATTACKS
    from calor_hf.auditing import AuditOptions, PrivateImages, audit, run_attack
    from calor_hf.core.report import LeakageReport
    from calor_hf.data.synthetic_faces import load_synthetic_faces
    from calor_hf.defenses import DEFENSES
    from calor_hf.defenses.calor import confidence_adaptation_loss
    from calor_hf.generators import GENERATORS, load_generator
    from calor_hf.heads.low_rank_head import LowRankHead
    from calor_hf.metrics import METRICS
    from calor_hf.modeling import (
        CALoRConfig,
        CALoRForImageClassification,
        DefendedConfig,
        DefendedForImageClassification,
    )
    from calor_hf.priors import PRIORS, train_prior
    from calor_hf.recipes.audit_callback import AuditCallback
    from calor_hf.targets.hf_target import HFTarget
    from calor_hf.training.arguments import CALoRTrainingArguments
    from calor_hf.training.calor_trainer import CALoRTrainer
    from calor_hf.training.rank import suggest_rank
    from calor_hf.training.trainer import DefenseTrainer

_HOME = {
    "ATTACKS": "calor_hf.attacks",
    "AuditCallback": "calor_hf.recipes.audit_callback",
    "AuditOptions": "calor_hf.auditing",
    "CALoRConfig": "calor_hf.modeling",
    "CALoRForImageClassification": "calor_hf.modeling",
    "CALoRTrainer": "calor_hf.training.calor_trainer",
    "CALoRTrainingArguments": "calor_hf.training.arguments",
    "DEFENSES": "calor_hf.defenses",
    "DefendedConfig": "calor_hf.modeling",
    "DefendedForImageClassification": "calor_hf.modeling",
    "DefenseTrainer": "calor_hf.training.trainer",
    "GENERATORS": "calor_hf.generators",
    "HFTarget": "calor_hf.targets.hf_target",
    "LeakageReport": "calor_hf.core.report",
    "LowRankHead": "calor_hf.heads.low_rank_head",
    "METRICS": "calor_hf.metrics",
    "PRIORS": "calor_hf.priors",
    "PrivateImages": "calor_hf.auditing",
    "audit": "calor_hf.auditing",
    "confidence_adaptation_loss": "calor_hf.defenses.calor",
    "load_generator": "calor_hf.generators",
    "load_synthetic_faces": "calor_hf.data.synthetic_faces",
    "run_attack": "calor_hf.auditing",
    "suggest_rank": "calor_hf.training.rank",
    "train_prior": "calor_hf.priors",
}

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "GENERATORS",
    "METRICS",
    "PRIORS",
    "AuditCallback",
    "AuditOptions",
    "CALoRConfig",
    "CALoRForImageClassification",
    "CALoRTrainer",
    "CALoRTrainingArguments",
    "DefendedConfig",
    "DefendedForImageClassification",
    "DefenseTrainer",
    "HFTarget",
    "LeakageReport",
    "LowRankHead",
    "PrivateImages",
    "__version__",
    "audit",
    "confidence_adaptation_loss",
    "load_generator",
    "load_synthetic_faces",
    "run_attack",
    "suggest_rank",
    "train_prior",
]

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calor_hf' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
