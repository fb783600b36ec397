"""The paper's analyses as runs that anybody can repeat; one study a file."""

from examples.paper.lab import Lab, LabOptions
from examples.paper.run_study import run_study
from examples.paper.study import STUDIES, Cell, Study

__all__ = ["STUDIES", "Cell", "Lab", "LabOptions", "Study", "run_study"]
