"""Names that strangers chose stay text, and never become a path."""

from pathlib import Path

import pytest

from calor_hf.core.plain_text import markdown_text, one_line
from calor_hf.core.report_text import to_markdown
from tests.auditing.small_report import attack, small_report


def test_marks_that_turn_text_are_taken_out() -> None:
    assert one_line("a\u202egpj.exe\u2069\n b\x00") == "agpj.exe b"
    assert markdown_text("[a](b) <c> | `d`\ne") == "\\[a\\](b) &lt;c&gt; \\| \\`d\\` e"


def test_a_hostile_name_stays_text_in_the_markdown_of_a_report() -> None:
    hostile = "<script>alert(1)</script> [x](javascript:y) `z` | w\n# v"
    text = to_markdown(small_report(created=hostile))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \\[x\\](javascript:y) \\`z\\` \\| w \\# v" in text
    assert "<script" not in text


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a/b", ""])
def test_an_attack_whose_name_is_a_path_is_refused(name: str, tmp_path: Path) -> None:
    # Its images would be looked for there.
    report = small_report(attacks=[attack(name, [0] * 6)])
    (tmp_path / "report.json").write_text(report.to_json())
    with pytest.raises(ValueError, match=r"report\.json"):
        type(report).load(tmp_path)
