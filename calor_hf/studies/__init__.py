"""The paper's analyses as runs that anybody can repeat; one study a file."""

from calor_hf.studies._base import STUDIES, Cell, Study
from calor_hf.studies._lab import Lab, LabOptions
from calor_hf.studies._run import run_study

__all__ = ["STUDIES", "Cell", "Lab", "LabOptions", "Study", "run_study"]
