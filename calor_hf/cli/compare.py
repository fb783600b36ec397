"""`calor-hf compare`: several defenses, tuned to the same accuracy or with fixed settings, in one table."""

from calor_hf.cli._command import GO_ON, Command
from calor_hf.recipes.compare import CompareOptions, compare, failures

main = Command(
    "compare",
    "Train several defenses on the same base model and data, each tuned to the same validation accuracy or with the"
    " settings given, and write one table. All other options are those of calor-hf train and hold for every run. Exit"
    " status: 1 if trainings failed; the table names them, and --resume trains them again.",
    CompareOptions,
    compare,
    GO_ON,
    {RuntimeError: 2},
    lambda found: int(bool(failures(found))),
).main
