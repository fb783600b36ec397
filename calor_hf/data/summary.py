"""Account of a set of images: what each split holds, what was not taken and why, and which images are there twice."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from calor_hf.core.plain_text import aligned, one_line


@dataclass(frozen=True)
class SplitCounts:
    """Counts of a split.

    Attributes:
        class_sizes: Images of each class; empty for images without labels.
        images: Images that are used.
        copies: Images that are identical to an earlier one of the split.
        not_taken: Number of files that are not used, by reason.
    """

    class_sizes: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    copies: int = 0
    not_taken: Mapping[str, int] = field(default_factory=dict)

    @property
    def files(self) -> int:
        """Files found: used and not used."""
        return self.images + sum(self.not_taken.values())


@dataclass(frozen=True)
class Summary:
    """Account of a set of images. Identical means the same bytes of the encoded file.

    Attributes:
        source: Folder, file or Hub id.
        splits: Counts of each split; those of the empty name are files outside the splits.
        shared: For two splits, the number of images in the second that are identical to one in the first.
        notes: Facts about the layout.
    """

    source: str
    splits: Mapping[str, SplitCounts]
    shared: Mapping[tuple[str, str], int]
    notes: Sequence[str] = ()

    @property
    def files(self) -> int:
        """Files found; for tables, images."""
        return sum(counts.files for counts in self.splits.values())

    def __str__(self) -> str:
        """Table with a row per split, and a line for each other fact."""
        rows = [["split", "classes", "images", "smallest class", "largest class", "copies", "not taken"]]
        for split, counts in self.splits.items():
            ordered = sorted(counts.class_sizes.items(), key=lambda item: item[1])
            ends = [f"{one_line(name)} ({size})" for name, size in (ordered[0], ordered[-1])] if ordered else ["", ""]
            left = ", ".join(f"{count} {reason}" for reason, count in counts.not_taken.items()) or "0"
            classes = str(len(ordered)) if ordered else ""
            rows.append([split or "(no split)", classes, str(counts.images), *ends, str(counts.copies), left])
        lines = [f"{self.source}: {self.files} files found", aligned(rows)]
        lines += [f"{count} images of {second} are also in {first}" for (first, second), count in self.shared.items()]
        return "\n".join([*lines, *self.notes])


def summarize(
    source: str, labels: Mapping[str, Sequence[str]], contents: Mapping[str, Sequence[str]],
    not_taken: Mapping[str, Mapping[str, int]] | None = None, notes: Sequence[str] = (),
) -> Summary:  # fmt: skip
    """Count what each split holds.

    Args:
        source: Name of the set.
        labels: Class name of each image, by split; of no length for images without labels.
        contents: Digest of each image, by split.
        not_taken: Files that are not used, by split and reason.
        notes: Facts about the layout.
    """
    not_taken = not_taken or {}
    splits = {
        split: SplitCounts(
            Counter(labels[split]), len(digests), len(digests) - len(set(digests)), not_taken.get(split, {})
        )
        for split, digests in contents.items()
    }
    splits |= {split: SplitCounts(not_taken=reasons) for split, reasons in not_taken.items() if split not in splits}
    shared = {}
    for first, second in combinations(contents, 2):
        known = set(contents[first])
        if count := sum(digest in known for digest in contents[second]):
            shared[first, second] = count
    classes_of: dict[str, set[str]] = {}
    for split, digests in contents.items():
        for digest, name in zip(digests, labels[split], strict=False):
            classes_of.setdefault(digest, set()).add(name)
    if several := sum(len(names) > 1 for names in classes_of.values()):
        notes = [*notes, f"{several} images are in more than one class"]
    return Summary(source, splits, shared, tuple(notes))
