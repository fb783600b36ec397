"""The generated tables of the guides are what the code says."""

import pytest

from calor_hf import ATTACKS, DEFENSES
from docs.method_tables import ATTACKS_PAGE, DEFENSES_PAGE, summary_and_source, tables, with_tables


def test_the_pages_have_the_tables_of_the_code() -> None:
    for page in tables():
        text = page.read_text(encoding="utf-8")
        assert with_tables(page, text) == text, "run make tables"
    for page, registry in ((DEFENSES_PAGE, DEFENSES), (ATTACKS_PAGE, ATTACKS)):
        text = page.read_text(encoding="utf-8")
        assert all(f"\n| `{name}` | " in text for name in registry.names())


def test_a_table_that_was_edited_is_found_and_renewed() -> None:
    text = DEFENSES_PAGE.read_text(encoding="utf-8")
    assert with_tables(DEFENSES_PAGE, text.replace("| `bido` |", "| `bidu` |")) == text
    with pytest.raises(ValueError, match="expected a place for the table of defenses in the text, got none"):
        with_tables(DEFENSES_PAGE, "")


def test_a_source_is_what_ends_the_first_line() -> None:
    class Method:
        """Fit a ``model`` (of all data) twice (Doe et al., ICML 2020).

        More.
        """

    class Ours:
        """Fit it (twice)."""

    assert summary_and_source(Method) == ("Fit a `model` (of all data) twice", "Doe et al., ICML 2020")
    assert summary_and_source(Ours) == ("Fit it (twice)", "")
