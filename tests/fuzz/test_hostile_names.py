"""Names of others (classes, models, data sets, attacks) stay text wherever they are quoted, whatever is in them."""

import dataclasses
import html.parser
import json
from pathlib import Path
from typing import Any

import markdown
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from huggingface_hub import ModelCard

from calor_hf.auditing.html import to_html
from calor_hf.auditing.markdown import to_markdown
from calor_hf.core.plain_text import markdown_text, one_line, unturned
from calor_hf.hub.card import CardDetails, build_card
from calor_hf.hub.evidence import gather
from tests.auditing.small_report import attack, small_report
from tests.hub.released_model import METHOD, audit_of, record, saved_model

HOSTILE = (
    "<script>alert(1)</script>", "](javascript:alert(1))", "[x](https://example.org)", "![x](https://example.org/x.png)",
    "|", "\n", "\n---\n", "---", "```", "`x`", "\u202egpj.exe", "\u2066x", "# x", "\n# x", "<!-- calor_hf:end load -->",
    "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' onclick='x", "&lt;b&gt;", "{{ 7 * 7 }}", "{% raw %}",
    "&#x3c;script>", "\\", "\\|", "*x*", "__x__", "~~x~~", "<https://example.org>", "javascript:alert(1)", ": ", "- x",
    "!!python/name:os.system", "&a", "*a", "%YAML", "\t", "\r\n", "@you", "$x$", "</title>", "<style>", "]]>", "1. x", "> x",
    "\x00", "\x1b[31m", "\ufeff", "😀", "Ünï", "ع", "x" * 300,
)  # fmt: skip
NAMES = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=4).map("".join).filter(str.strip)
# The same cases in every run: a default suite does not gamble.
some = settings(max_examples=60, derandomize=True, deadline=None, database=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
few = settings(some, max_examples=25)


class Seen(html.parser.HTMLParser):
    """Tags, their attributes, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = list[str](), list[tuple[str, str]](), list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(text: str) -> str:
    return markdown.markdown(text, extensions=["tables", "md_in_html"])


@some
@given(NAMES)
@example("".join(HOSTILE))
def test_text_in_markdown_is_a_paragraph_and_nothing_else(name: str) -> None:
    seen = Seen(shown(f"Name: {markdown_text(name)}"))
    assert set(seen.tags) <= {"p"}
    found = "".join(seen.texts).replace("\\", "").replace(" ", "")
    wanted = f"Name: {one_line(name)}".replace("\\", "").replace(" ", "")
    assert found.strip() == wanted.replace("\x02", "").replace("\x03", "").strip() or not name.isprintable()


def reports(name: str) -> Any:
    known = small_report()
    hostile = attack("weak", [0, 0, 0, 1, 0, 0], name=name.replace("/", ""), settings={name: name},
                     generator={"generator": name}, floors={name: known.attacks[0].floors["samples of the prior"]})  # fmt: skip
    measure = dataclasses.replace(known.utility[0], name=name, note=name, unit=name)
    return dataclasses.replace(
        known, label_names=[name, "Bob", name], attacks=[hostile, known.attacks[1]], utility=[measure], neighbours=[measure],
        target={**known.target, "name": name, "model": name, "defense": name, "settings": {"x": name}},
        data={**known.data, "name": name}, networks={"judge": name}, created=name, version=name,
    )  # fmt: skip


@few
@given(NAMES)
@example("".join(HOSTILE))
def test_the_page_of_a_report_has_the_tags_of_a_harmless_one(name: str) -> None:
    page, harmless = Seen(to_html(reports(name))), Seen(to_html(reports("Ada")))

    def outside_the_plot(seen: Seen) -> list[str]:
        begin, end = seen.tags.index("figure"), seen.tags.index("figcaption")
        return seen.tags[:begin] + seen.tags[end:]

    assert outside_the_plot(page) == outside_the_plot(harmless)
    assert not [pair for pair in page.attributes if pair[0].startswith("on") or "javascript:" in pair[1]]
    assert unturned(name) in page.texts or "\r" in name  # a parser reads \r as \n
    assert not set("\u202e\u2066") & set("".join(page.texts))


@few
@given(NAMES)
@example("".join(HOSTILE))
def test_the_markdown_of_a_report_has_the_tags_of_a_harmless_one(name: str) -> None:
    page, harmless = Seen(shown(to_markdown(reports(name)))), Seen(shown(to_markdown(reports("Ada"))))
    assert [tag for tag in page.tags if tag not in ("em", "strong")] == harmless.tags
    assert not {"a", "img", "script", "code"} & set(page.tags)


@few
@given(NAMES)
@example("".join(HOSTILE))
def test_the_card_quotes_and_its_metadata_are_yaml(tmp_path: Path, name: str) -> None:
    model = tmp_path / "model"
    if not model.exists():
        saved_model(model)
    config = json.loads((model / "config.json").read_text())
    config |= {"id2label": {"0": name, "1": "x", "2": "y", "3": "z"}, "base_class": name}
    (model / "config.json").write_text(json.dumps(config))
    record(model, base_model=name, dataset_id=name, version=name, steps={name: 3})
    folder = tmp_path / "audit"
    if not folder.exists():
        report = audit_of(model, folder)
        target = {**report.target, "weights": report.target["weights"]}
        hostile = dataclasses.replace(reports(name), target=target, budget=report.budget)
        dataclasses.replace(hostile, seed=report.seed).save(folder / "report.json")
    report_of = dataclasses.replace(reports(name), target=json.loads((folder / "report.json").read_text())["target"])
    report_of.save(folder / "report.json")
    details = CardDetails(name, name, name, tags=(name,), class_names=(name, "x", "y", "z"))
    card = str(build_card(gather(model, folder), METHOD, details))
    read: Any = ModelCard(card)
    assert read.data.license == name
    assert name in read.data.tags
    assert read.data.base_model == name
    metadata = card.split("\n---\n")[0].removeprefix("---\n")
    assert yaml.safe_load(metadata)["license"] == name
    again = build_card(gather(model, folder), METHOD, details, card)
    assert str(again) == card  # its own marks are found again, and no others
    seen = Seen(shown(read.text))
    allowed = {"h1", "h2", "h3", "p", "ul", "ol", "li", "code", "pre", "strong", "em", "table", "thead", "tbody", "tr", "th",
               "td", "blockquote", "details", "summary", "a"}  # fmt: skip
    assert set(seen.tags) <= allowed
    assert {value for key, value in seen.attributes if key == "href"} == {"evidence.json"}
    assert seen.tags.count("h1") == 1


def test_marks_that_turn_text_are_taken_out() -> None:
    assert one_line("a\u202egpj.exe\u2069\n b\x00") == "agpj.exe b"
    assert markdown_text("[a](b) <c> | `d`\ne") == "\\[a\\](b) &lt;c&gt; \\| \\`d\\` e"


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a\\b", "a/b", "x\x00y", ""])
def test_an_attack_whose_name_is_a_path_is_refused(name: str, tmp_path: Path) -> None:
    # Its pictures would be looked for there.
    hostile = small_report(attacks=[attack("weak", [0] * 6, name=name)])
    (tmp_path / "report.json").write_text(hostile.to_json())
    with pytest.raises(ValueError, match=r"report\.json: .*attacks\[0\]\.name .* is none: it would be a path"):
        type(hostile).load(tmp_path)
