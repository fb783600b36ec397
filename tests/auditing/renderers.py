"""Every renderer of a report, as text."""

import html
import re
from collections.abc import Callable

from calor_hf.auditing.html import to_html
from calor_hf.auditing.several_reports import compare_reports
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import LeakageReport
from calor_hf.core.report_text import summary, to_markdown
from calor_hf.hub.card import CardDetails, build_card
from calor_hf.hub.evidence import Evidence, ModelInfo

WRONG = re.compile(r"(?i)\bsafe\b|\bno more than chance\b|\bbounds?\b|found nothing, and")
"""Words that an audit without power may not use."""
_MODEL = ModelInfo("X", None, "calor", {}, classes=64, telling_names=0, weights=None, processor=None)


def _card(report: LeakageReport) -> str:
    evidence = Evidence(_MODEL, None, report.publishable(), report.to_dict()["checksum"])
    return str(build_card(evidence, "A defense.\n\nSource:\n    none.", CardDetails("demo")))


RENDERERS: dict[str, tuple[Callable[[LeakageReport], str], Callable[[str], str]]] = {
    "terminal": (summary, str),
    "page": (lambda one: html.unescape(to_html(one)), str),
    "Markdown": (to_markdown, markdown_text),
    "diff": (lambda one: compare_reports(one, one), str),
    "card": (_card, markdown_text),
    "JSON": (LeakageReport.to_json, lambda line: re.sub(r'(["\\])', r"\\\1", line)),
}
"""For each renderer, the text of a report, and how it escapes a sentence."""


def said(report: LeakageReport) -> list[str]:
    """Verdict and caveats, which every renderer has to hold."""
    return [*report.verdict.sentences, *report.verdict.reasons, *report.caveats]


def check_rendered(report: LeakageReport) -> None:
    """Assert that every renderer says the same, and nothing that an audit without power may not say."""
    for name, (text_of, escaped) in RENDERERS.items():
        text = text_of(report)
        assert [line for line in said(report) if escaped(line) not in text] == [], name
        if report.verdict.kind == "inconclusive":
            assert WRONG.search(text) is None, name
