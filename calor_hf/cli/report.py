"""`calor-hf report`: show an audit's report again, or compare two."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from calor_hf.auditing.gallery import Gallery, gallery_of
from calor_hf.auditing.html import to_html
from calor_hf.auditing.markdown import to_markdown
from calor_hf.auditing.networks import load_network
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.run import RESULT, load_reconstruction
from calor_hf.auditing.several_reports import across_seeds, compare_reports, merge_reports
from calor_hf.auditing.verdict import summary
from calor_hf.core.files import write_whole
from calor_hf.core.report import LeakageReport

PRIVATE_IMAGE = 'alt="private image"'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 where there is no report, or one that was changed, cut off or is of a newer version.
    """
    parser = argparse.ArgumentParser(prog="calor-hf report", description="Show the report of an audit.")
    add = parser.add_argument
    add("reports", nargs="*", metavar="REPORT", help="folder of an audit, or its report.json; several are merged")
    add("--diff", nargs=2, metavar=("A", "B"), help="compare two reports of the same people, person by person")
    add("--seeds", nargs="+", metavar="REPORT", help="mean and range over audits that differ in their seed alone: the"
        " attack's, or the target's")  # fmt: skip
    add("--beside", nargs="+", default=[], metavar="REPORT", help="other models on the same data, for the plot of use"
        " against leakage")  # fmt: skip
    add("--output-dir", help="write page and Markdown there; default: beside the report")
    options = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        if options.diff:
            print(compare_reports(*(LeakageReport.load(path) for path in options.diff)))
            return 0
        if options.seeds:
            print(across_seeds([LeakageReport.load(path) for path in options.seeds]))
            return 0
        if not options.reports:
            raise ValueError("pass the folder of an audit, or --diff A B, or --seeds A B C")
        report = merge_reports([LeakageReport.load(path) for path in options.reports])
        first = Path(options.reports[0])
        home = first if first.is_dir() else first.parent
        others = tuple(LeakageReport.load(path) for path in options.beside)
        folder = Path(options.output_dir) if options.output_dir else home
        pages = write_pages(report, folder, images_from=home, others=others)
    except (ValueError, OSError) as error:
        print(f"calor-hf report: {error}", file=sys.stderr)
        return 2
    print(f"{summary(report)}\n\nreport: {pages[0]}")
    return 0


def write_pages(
    report: LeakageReport,
    folder: Path,
    private: PrivateImages | None = None,
    evaluation_model: str | None = None,
    images_from: Path | None = None,
    others: tuple[LeakageReport, ...] = (),
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md``, with the reconstructions that lie in the audit's folder.

    Args:
        report: The report.
        folder: Where to.
        private: Private images to show; None: they stay out.
        evaluation_model: Network that says which private image is nearest.
        images_from: Folder of the audit; None: ``folder``.
        others: Reports of other models, for the plot.
        overwrite: Replace a page even if it shows private images and the new one does not.

    Returns:
        Paths of page and Markdown.

    Raises:
        FileExistsError: a page that shows private images would give way to one that does not.
    """
    page, text = folder / "report.html", folder / "report.md"
    if private is None and not overwrite and page.is_file() and PRIVATE_IMAGE in page.read_text(encoding="utf-8"):
        raise FileExistsError(
            f"{page} shows private images, and the new page would not; pass another --output-dir, or audit with "
            "--resume --include-private-images"
        )
    gallery = _gallery(report, images_from or folder, private, evaluation_model)
    write_whole(page, to_html(report, gallery, others).encode())
    write_whole(text, to_markdown(report).encode())
    return page, text


def _gallery(
    report: LeakageReport, folder: Path, private: PrivateImages | None, evaluation_model: str | None
) -> Gallery | None:
    files = {attack.name: folder / attack.name / RESULT for attack in report.attacks}
    found = {name: load_reconstruction(file) for name, file in files.items() if file.is_file()}
    if not found:
        return None
    if private is None or evaluation_model is None:
        return gallery_of(found)
    network = load_network(evaluation_model)
    known, _ = network.look(private.images)
    nearest = {}
    for name, one in found.items():
        distances = torch.cdist(network.look(one.images)[0].double(), known.double())
        others = one.labels[:, None] != private.labels[None, :]
        nearest[name] = distances.masked_fill(others, torch.inf).argmin(dim=1)
    return gallery_of(found, private.images, private.labels, nearest)


if __name__ == "__main__":
    sys.exit(main())
