"""The paper's analyses, one study per file; ``python -m examples.paper NAME`` runs one."""

from examples.paper.study import STUDIES

__all__ = ["STUDIES"]
