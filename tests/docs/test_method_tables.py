"""README.md's tables of methods are what the registries say."""

import pytest

from calor_hf import ATTACKS, DEFENSES
from docs.method_tables import README, summary_and_source, with_tables


def test_the_readme_has_the_tables_of_the_registries() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run make tables"
    for name in (*DEFENSES.names(), *ATTACKS.names()):
        assert f"\n| `{name}` | " in text


def test_a_table_that_was_edited_is_found_and_renewed() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(text.replace("| `gmi` |", "| `gmy` |")) == text
    with pytest.raises(ValueError, match="expected a place for the table of defenses in the text, got none"):
        with_tables("")


def test_a_source_is_what_ends_the_first_line() -> None:
    class Method:
        """Fit a ``model`` (of all data) twice (Doe et al., ICML 2020).

        More.
        """

    class Ours:
        """Fit it (twice)."""

    assert summary_and_source(Method) == ("Fit a `model` (of all data) twice", "Doe et al., ICML 2020")
    assert summary_and_source(Ours) == ("Fit it (twice)", "")
