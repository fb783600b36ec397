"""The tables of README.md and docs/trainer.md are what the code says."""

import pytest

from calor_hf import ATTACKS, DEFENSES
from docs.method_tables import README, summary_and_source, tables, with_tables


def test_the_pages_have_the_tables_of_the_code() -> None:
    for page in tables():
        text = page.read_text(encoding="utf-8")
        assert with_tables(page, text) == text, "run make tables"
    text = README.read_text(encoding="utf-8")
    for name in (*DEFENSES.names(), *ATTACKS.names()):
        assert f"\n| `{name}` | " in text


def test_a_table_that_was_edited_is_found_and_renewed() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(README, text.replace("| `gmi` |", "| `gmy` |")) == text
    with pytest.raises(ValueError, match="expected a place for the table of defenses in the text, got none"):
        with_tables(README, "")


def test_a_source_is_what_ends_the_first_line() -> None:
    class Method:
        """Fit a ``model`` (of all data) twice (Doe et al., ICML 2020).

        More.
        """

    class Ours:
        """Fit it (twice)."""

    assert summary_and_source(Method) == ("Fit a `model` (of all data) twice", "Doe et al., ICML 2020")
    assert summary_and_source(Ours) == ("Fit it (twice)", "")
