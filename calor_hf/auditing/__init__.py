"""Audits: attacks run, kept, evaluated and reported."""

from calor_hf.auditing.audit import audit
from calor_hf.auditing.options import AuditOptions
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.run import AttackRecord, load_reconstruction, run_attack
from calor_hf.core.report import LeakageReport

__all__ = [
    "AttackRecord",
    "AuditOptions",
    "LeakageReport",
    "PrivateImages",
    "audit",
    "load_reconstruction",
    "run_attack",
]
