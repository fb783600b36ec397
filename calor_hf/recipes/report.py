"""Show reports of audits: as a page and Markdown, compared by class, or over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from calor_hf.auditing import load_reconstruction
from calor_hf.auditing.gallery import Gallery, gallery_of
from calor_hf.auditing.html import to_html
from calor_hf.auditing.networks import Network
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.run import RESULT
from calor_hf.auditing.several_reports import across_seeds, compare_reports, merge_reports, model_rows
from calor_hf.core.config import setting
from calor_hf.core.decoy_sentences import CONDITION, MEANING
from calor_hf.core.files import write_whole
from calor_hf.core.plain_text import aligned
from calor_hf.core.processes import process_state
from calor_hf.core.report import LeakageReport
from calor_hf.core.report_text import summary, to_markdown
from calor_hf.recipes.annex import FORM, check_model, write_annex

PRIVATE_IMAGE = 'alt="private image"'
INCONCLUSIVE = 4
"""Exit status of an audit that had no power."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of :func:`show_report`."""

    reports: Sequence[str] = field(
        default=(),
        metadata={
            "positional": True, "nargs": "*", "metavar": "REPORT",
            "help": "folder of an audit, or its report.json; several are merged",
        },
    )  # fmt: skip
    diff: Sequence[str] = field(
        default=(),
        metadata={"nargs": 2, "metavar": "REPORT", "help": "compare two reports of the same people, class by class"},
    )
    seeds: Sequence[str] = field(
        default=(),
        metadata={
            "nargs": "+", "metavar": "REPORT",
            "help": "mean and range over audits that differ in their seed alone: the attack's, or the target's",
        },
    )  # fmt: skip
    others: Sequence[str] = field(
        default=(),
        metadata={
            "nargs": "+", "metavar": "REPORT",
            "help": "other models on the same data: the page compares them in a plot and a table",
        },
    )  # fmt: skip
    output_dir: str | None = field(
        default=None, metadata={"help": "write page and Markdown there; default: next to the report"}
    )
    annex: bool = setting(
        False,
        "also write an annex for a data protection officer, annex.html and annex.json, with the answers in annex.yaml,"
        " a form that is written first",
    )
    verify: str | None = setting(
        None, "check the report's checksum, and that the model in this folder is the one that was attacked",
        metavar="MODEL_DIR",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse options of which one would be ignored."""
        if sum(map(bool, (self.reports, self.diff, self.seeds))) != 1:
            raise ValueError("pass the folder of an audit, or --diff A B, or --seeds A B C, and one of these alone")
        if not self.reports and (self.others or self.output_dir or self.annex or self.verify):
            raise ValueError(
                "--others, --output-dir, --annex and --verify are about one report, which --diff and --seeds are not"
            )


def status_of(report: LeakageReport | None) -> int:
    """Return the exit status for a report: 4 if it is inconclusive, else 0.

    It is 0 without a report, and in several processes, whose launcher treats any other status as a crash.
    """
    inconclusive = report is not None and report.verdict.kind == "inconclusive"
    return INCONCLUSIVE if inconclusive and process_state().num_processes == 1 else 0


def show_report(options: ReportOptions) -> LeakageReport:
    """Print a report and write its page, or print a comparison.

    Returns:
        The report. For a comparison, the one that sets the exit status: for two reports one that is not inconclusive,
        for several seeds one that is.

    Raises:
        ValueError: no report was named, or one is damaged, or reports do not fit together.
        FileNotFoundError: a report does not exist.
        FileExistsError: the page there shows private images, and the new one would not.
    """
    if options.diff:
        pair = [LeakageReport.load(path) for path in options.diff]
        print(compare_reports(*pair))
        return min(pair, key=status_of)
    if options.seeds:
        reports = [LeakageReport.load(path) for path in options.seeds]
        print(across_seeds(reports))
        return max(reports, key=status_of)
    report = merge_reports([LeakageReport.load(path) for path in options.reports])
    if options.verify is not None:
        print(f"the checksum of the report fits its content\n{check_model(report.target, Path(options.verify))}\n")
    first = Path(options.reports[0])
    home = first if first.is_dir() else first.parent
    others = tuple(LeakageReport.load(path) for path in options.others)
    folder = Path(options.output_dir) if options.output_dir else home
    page, _ = write_pages(report, folder, images_from=home, others=others)
    print(f"{summary(report)}\n\nreport: {page}")
    if options.annex:
        annex_page, annex = write_annex(report, folder, others)
        print(f"annex: {annex_page}; {len(annex.unanswered)} fields are unanswered: fill in {folder / FORM}, run again")
    if others:
        rows = model_rows([report, *others])
        print(f"\n{aligned(list(zip(*(row[:-1] for row in rows), strict=True)))}\n")
        if any(one.with_decoys for one in (report, *others)):
            print(f"{MEANING} {CONDITION}\n")
        for name, *_, differs in rows[2:]:
            print(f"{name} differs from the first in: {differs}")
    return report


def write_pages(
    report: LeakageReport,
    folder: Path,
    private: PrivateImages | None = None,
    network: Network | None = None,
    images_from: Path | None = None,
    others: tuple[LeakageReport, ...] = (),
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md``, with the reconstructions in the audit's folder.

    Args:
        report: The report.
        folder: Output folder.
        private: Private images to show next to the reconstructions, or None.
        network: Network in whose features the nearest private image is chosen; needed with ``private``.
        images_from: Folder of the audit; defaults to ``folder``.
        others: Reports of other models, for the plot.
        overwrite: Replace a page that shows private images with one that does not.

    Returns:
        Paths of page and Markdown.

    Raises:
        FileExistsError: the page there shows private images, and the new one would not.
    """
    page, text = folder / "report.html", folder / "report.md"
    if private is None and not overwrite and page.is_file() and PRIVATE_IMAGE in page.read_text(encoding="utf-8"):
        raise FileExistsError(
            f"{page} shows private images, and the new page would not; pass another --output-dir, or audit with "
            "--resume --include-private-images"
        )
    gallery = load_gallery(report, images_from or folder, private, network)
    html, markdown = to_html(report, gallery, others), to_markdown(report)
    write_whole(page, html.encode())
    write_whole(text, markdown.encode())
    return page, text


def load_gallery(
    report: LeakageReport, folder: Path, private: PrivateImages | None, network: Network | None
) -> Gallery | None:
    """Read the reconstructions in an audit's folder, with the nearest private image of each; arguments as above."""
    files = {attack.name: folder / attack.name / RESULT for attack in report.attacks}
    found = {name: load_reconstruction(file) for name, file in files.items() if file.is_file()}
    if not found:
        return None
    if private is None or network is None:
        return gallery_of(found)
    known, _ = network.outputs(private.images)
    nearest = {}
    for name, one in found.items():
        distances = torch.cdist(network.outputs(one.images)[0].double(), known.double())
        others = one.labels[:, None] != private.labels[None, :]
        nearest[name] = distances.masked_fill(others, torch.inf).argmin(dim=1)
    return gallery_of(found, private.images, private.labels, nearest)
