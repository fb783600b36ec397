"""Patterns of English that readers stumbled over: none in docstrings, comments, other strings or Markdown."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PYTHON = ("calor_hf", "examples", "benchmarks", "tests", "docs")
BANNED = {
    "a description that begins with 'Of'": r"^ *\w+: Of\b",
    "a noun clause as a name": r"^(What|Who)\b|: What\b",
    "'None:' instead of 'None means'": r"\bNone: ",
    "a pronoun for no one in particular": r"\b(nobody|somebody|whom|whoever)\b",
    "'there is none'": r"\b(is|are) none\b",
    "'beside' for next to, or in addition to": r"\bbeside\b",
    "'in the place of' for instead of": r"in the place of",
    "'images a class' for 'per class'": r"\b(images|samples|candidates|numbers|queries|rows"
    r"|layers?|(a|one) (row|seed|step|draw|folder))"
    r"\s+an? (image|person|step|class|move|stage|query|batch|epoch|identity|attack)\b",
    "'of' for 'for', in front of a sentence": r"[.;] [Oo]f (a|an|the|one|each|two|several)\b",
    "'not to be' for 'cannot be'": r"\bnot to be (had|told|found|written)\b",
}
WHERE = r"\bwhere (it|there|they|a|an|the|that|no|none|not)\b"
"""Right for places and definitions, and wrong for conditions."""
MOST_WHERE = 6  # per 10,000 words
REASONED = ("attacks", "defenses", "heads", "metrics")
"""Packages whose mathematics and upstream quirks need comments that say why."""
LEAST_COMMENTS = 4  # per 100 lines of code
DIRECTIVE = r"#:? *(fmt|type|noqa|pragma)\b"


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Texts of a file, each with its first line."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield 1, source
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#: ")


def files() -> list[Path]:
    found = [file for folder in PYTHON for file in (REPOSITORY / folder).rglob("*.py") if file != Path(__file__)]
    return [*found, *REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]


def findings(text: str) -> Iterator[tuple[int, str]]:
    """Lines within a text, and what is wrong with each."""
    for name, pattern in BANNED.items():
        for match in re.finditer(pattern, text, re.MULTILINE):
            yield text.count("\n", 0, match.start()), f"{name}: {match.group().strip()}"


def test_no_banned_pattern_and_few_where() -> None:
    found, words, where = list[str](), 0, 0
    for file in files():
        for line, text in texts(file):
            words += len(text.split())
            where += len(re.findall(WHERE, text))
            place = file.relative_to(REPOSITORY)
            found += [f"{place}:{line + below}: {finding}" for below, finding in findings(text)]
    assert not found, "reword:\n" + "\n".join(found)
    assert words > 100_000  # the texts are read
    assert where <= MOST_WHERE * words / 10_000, f"'where' for a condition: {where} in {words} words; write 'if'"


def comments_and_code(source: str) -> tuple[int, int]:
    """Lines with a comment of four words or more, and lines of code; docstrings and blank lines are neither."""
    strings = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    docstrings = {
        line
        for node in strings
        if isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    comments, code = 0, set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += not re.match(DIRECTIVE, token.string) and len(token.string.lstrip("#: ").split()) >= 4
        elif token.string.strip():
            code |= set(range(token.start[0], token.end[0] + 1))
    return comments, len(code - docstrings)


@pytest.mark.parametrize("package", REASONED)
def test_comments_give_reasons(package: str) -> None:
    files = (REPOSITORY / "calor_hf" / package).rglob("*.py")
    comments, code = map(
        sum, zip(*(comments_and_code(file.read_text(encoding="utf-8")) for file in files), strict=True)
    )
    assert 100 * comments >= LEAST_COMMENTS * code, f"{comments} comments in {code} lines of code; say why, not what"


def test_directives_and_docstrings_are_no_comments() -> None:
    source = '"""A module."""\n\n# a reason of four words\nx = (1,\n     2)  # type: ignore[four, words, or, more]\n'
    assert comments_and_code(source) == (1, 2)


@pytest.mark.parametrize(
    "text",
    ["    seed: Of the noise.", "What a network computes.", "size: What it holds.", "limit: None: no limit.",
     "for whoever reads it", "ValueError: there is none.", "a file beside it", "in the place of a name",
     "5 images a class", "one layer\na stage", "As it is; of a folder the files.", "a folder not to be written to"],
)  # fmt: skip
def test_each_pattern_is_found(text: str) -> None:
    assert list(findings(text))


def test_ordinary_sentences_pass() -> None:
    text = "Return the score.\n\nArgs:\n    seed: Seed of the noise. ``None`` means a random one.\n"
    assert not list(findings(text))
