"""Preparation of the paper's image sets, from the layout of their distribution to folders for ``calor-hf``.

Private sets become ``train/CLASS/*.png`` and ``test/CLASS/*.png``, public images one plain folder. Nothing is
downloaded, and the source is only read. The crops are those of the MIBench code, which the paper used.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from calor_hf.core.files import read_json, read_text, write_json, write_whole
from calor_hf.core.seeding import named_rng
from calor_hf.data.bad_images import to_rgb
from calor_hf.data.folders import list_files

logger = logging.getLogger(f"calor_hf.{__name__}")  # log_to_terminal shows the messages of calor_hf

RECORD = ".prepared.json"
TEST_SHARE = 0.1
_LOW_RESOLUTION = 112  # up to this side, crops are those of the paper's low-resolution images
_CELEBA_SIZE, _CELEBA_CROP = (178, 218), 108

Crop = Callable[[Image.Image, int], Image.Image]


@dataclass(frozen=True)
class Prepared:
    """Counts of one call.

    Attributes:
        written: Images written by this call.
        kept: Images that existed already.
        unreadable: Images that could not be decoded and are skipped.
        others: Files of the source that are not in the set, by reason.
    """

    written: int
    kept: int
    unreadable: int
    others: dict[str, int]


def prepare_facescrub(source: Path, output_dir: Path, image_size: int = 64, identities: int | None = None) -> Prepared:
    """Prepare FaceScrub as its download scripts store it: ``actors/faces/NAME/*`` and ``actresses/faces/NAME/*``.

    Classes are called ``actors_NAME`` and ``actresses_NAME``, in the order of the published code; the paper attacks the
    first 100. A tenth of each class becomes test data (the published code splits over all classes).

    Args:
        source: Folder with both groups; the level ``faces`` may be missing.
        output_dir: New folder, or that of an earlier call.
        image_size: Side in pixels. Up to 112 the image is resized, cropped to its central 54/64 and resized again;
            above, it is only resized.
        identities: Number of identities, the first ones. None means all, 530 in the complete set.

    Raises:
        FileNotFoundError: a group is missing.
        ValueError: no images, an identity with one image, or an output folder of other settings.
        FileExistsError: ``output_dir`` holds other files.
    """
    classes: dict[str, list[Path]] = {}
    for group in ("actors", "actresses"):
        folder = _first_folder(source, "FaceScrub", f"{group}/faces", group)
        classes |= {f"{group}_{one.name}": _images(one) for one in _folders(folder)}
    _warn_if_incomplete("FaceScrub", len(classes), 530)
    chosen = dict(list(classes.items())[:identities])
    return _write("facescrub", source, output_dir, image_size, _cut_test(chosen), facescrub_crop)


def prepare_celeba(source: Path, output_dir: Path, image_size: int = 64, identities: int | None = None) -> Prepared:
    """Prepare the identities of CelebA with most images, from ``img_align_celeba/*.jpg`` and ``identity_CelebA.txt``.

    Classes are called ``RANK_IDENTITY``: most images first, ties in the order of the list, as in the published code.
    A tenth of each class becomes test data (the published code splits over all classes).

    Args:
        source: Folder with both, or with ``Img`` and ``Anno``, as it is distributed.
        output_dir: New folder, or that of an earlier call.
        image_size: Side in pixels of the resized central 108 x 108 crop.
        identities: Number of identities. None means 1000.

    Raises:
        FileNotFoundError: images or list are missing.
        ValueError: the list is not CelebA's, images are not the aligned ones, or an output folder of other settings.
        FileExistsError: ``output_dir`` holds other files.
    """
    folder = _first_folder(source, "CelebA", "img_align_celeba", "Img/img_align_celeba")
    lists = [source / name for name in ("identity_CelebA.txt", "Anno/identity_CelebA.txt")]
    listed = next((path for path in lists if path.is_file()), None)
    if listed is None:
        raise FileNotFoundError(
            f"expected CelebA's list identity_CelebA.txt in {source} or its Anno; it is a separate download"
        )
    files_of: dict[str, list[Path]] = defaultdict(list)
    for number, line in enumerate(read_text(listed).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        # Only plain file names: no path out of the folder.
        if len(fields) != 2 or not fields[1].isdigit() or Path(fields[0]).name != fields[0] or "\\" in fields[0]:
            raise ValueError(f"{listed} line {number}: expected 'IMAGE.jpg NUMBER', got {line!r}")
        files_of[fields[1]].append(folder / fields[0])
    counts = Counter({identity: len(paths) for identity, paths in files_of.items()})
    frequent = counts.most_common(1000 if identities is None else identities)
    classes = {f"{rank:04d}_{identity}": sorted(files_of[identity]) for rank, (identity, _) in enumerate(frequent)}
    if identities is None:
        _warn_if_incomplete("CelebA", len(classes), 1000)
    absent = [path for paths in classes.values() for path in paths if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{len(absent)} images of the list are missing, first {absent[0]}; unpack all of them")
    return _write("celeba", source, output_dir, image_size, _cut_test(classes), celeba_crop)


def prepare_ffhq(source: Path, output_dir: Path, image_size: int = 64, identities: int | None = None) -> Prepared:
    """Prepare FFHQ as public images, from ``thumbnails128x128`` or ``images1024x1024``, with or without sub-folders.

    Args:
        source: One of these folders, or their parent.
        output_dir: New folder, or that of an earlier call.
        image_size: Side in pixels. Up to 112 of the central 88/128 of the image, above of the central 800/1024.
        identities: Number of images, the first ones. None means all, 70 000 in the complete set.

    Raises:
        FileNotFoundError: neither folder exists.
        ValueError: images that are not square or too small, or an output folder of other settings.
        FileExistsError: ``output_dir`` holds other files.
    """
    names = ["thumbnails128x128", "images1024x1024"]
    if image_size > 88:  # the thumbnails' crop has no more pixels
        names.reverse()
    folder = source if source.name in names else _first_folder(source, "FFHQ", *names)
    found = [file.path for file in list_files(folder) if not file.reason]
    _warn_if_incomplete("FFHQ", len(found), 70_000)
    twice = [stem for stem, count in Counter(path.stem for path in found).items() if count > 1]
    if twice:
        raise ValueError(f"{folder} holds several images called {twice[0]}; expected each of FFHQ's numbers once")
    return _write("ffhq", source, output_dir, image_size, [(path, Path()) for path in found[:identities]], ffhq_crop)


def prepare_imagenette(source: Path, output_dir: Path, image_size: int = 64, identities: int | None = None) -> Prepared:
    """Prepare Imagenette as labeled images; ``val/nNUMBER/*`` becomes the test split.

    Args:
        source: Folder with both.
        output_dir: New folder, or that of an earlier call.
        image_size: Side in pixels of the resized largest central square.
        identities: Number of classes, the first ones. None means all, ten in the complete set.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: no images, or an output folder of other settings.
        FileExistsError: ``output_dir`` holds other files.
    """
    jobs: list[tuple[Path, Path]] = []
    for theirs, ours in (("train", "train"), ("val", "test")):
        classes = _folders(_first_folder(source, "Imagenette", theirs))[:identities]
        jobs += [(path, Path(ours, one.name)) for one in classes for path in _images(one)]
    return _write("imagenette", source, output_dir, image_size, jobs, square_crop)


SETS: dict[str, Callable[[Path, Path, int], Prepared]] = {
    "celeba": prepare_celeba,
    "facescrub": prepare_facescrub,
    "ffhq": prepare_ffhq,
    "imagenette": prepare_imagenette,
}


# Crops: from an RGB image to one of size x size


def facescrub_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize to ``size``; at low resolution crop the central 54/64 and resize again, as the source does."""
    whole = image.resize((size, size), Image.Resampling.BILINEAR)
    if size > _LOW_RESOLUTION:
        return whole
    return _middle(whole, 54 * size // 64).resize((size, size), Image.Resampling.BILINEAR)


def celeba_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the central 108 x 108 of an aligned image."""
    if image.size != _CELEBA_SIZE:
        raise ValueError(
            f"expected CelebA's aligned images of 178 x 218 pixels, got {image.width} x {image.height}; pass "
            "img_align_celeba, not the images in the wild"
        )
    return _middle(image, _CELEBA_CROP).resize((size, size), Image.Resampling.BILINEAR)


def ffhq_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the central 88/128 of a square image; above 112 pixels the central 800/1024."""
    share = 88 / 128 if size <= _LOW_RESOLUTION else 800 / 1024
    side = round(share * image.width)
    if image.width != image.height or side < size:
        raise ValueError(
            f"expected square images of at least {round(size / share)} pixels for --image-size {size}, got "
            f"{image.width} x {image.height}; pass FFHQ's images1024x1024, or a smaller size"
        )
    return _middle(image, side).resize((size, size), Image.Resampling.BILINEAR)


def square_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the largest central square."""
    return _middle(image, min(image.size)).resize((size, size), Image.Resampling.BILINEAR)


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


# Folders


def _first_folder(source: Path, name: str, *choices: str) -> Path:
    for choice in choices:
        if (source / choice).is_dir():
            return source / choice
    there = sorted(path.name for path in source.iterdir())[:5] if source.is_dir() else []
    found = f"found {', '.join(there)}" if there else "found nothing"
    raise FileNotFoundError(f"expected {name}'s folder {' or '.join(choices)} in {source}, {found}; unpack it there")


def _folders(parent: Path) -> list[Path]:
    found = sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"expected one sub-folder per class in {parent}, found none")
    return found


def _images(folder: Path) -> list[Path]:
    found = [file.path for file in list_files(folder) if not file.reason and len(file.parts) == 1]
    if not found:
        raise ValueError(f"expected images in {folder}, found none; remove or fill it")
    return found


def _warn_if_incomplete(name: str, found: int, complete: int) -> None:
    if found != complete:
        logger.warning("%s: found %d, the complete set has %d; the result is not the paper's", name, found, complete)


def _cut_test(classes: dict[str, list[Path]]) -> list[tuple[Path, Path]]:
    jobs: list[tuple[Path, Path]] = []
    for index, (name, paths) in enumerate(classes.items()):
        if len(paths) < 2:
            raise ValueError(f"class {name} has {len(paths)} image: too few for training and test; remove it")
        count = max(1, round(TEST_SHARE * len(paths)))
        test = set(named_rng(0, "examples/prepare/test-split", index).permutation(len(paths))[:count].tolist())
        jobs += [(path, Path("test" if i in test else "train", name)) for i, path in enumerate(paths)]
    return jobs


def _write(
    name: str, source: Path, output_dir: Path, image_size: int, jobs: Sequence[tuple[Path, Path]], crop: Crop
) -> Prepared:
    if image_size < 1:
        raise ValueError(f"image_size must be at least one pixel, got {image_size}")
    if not jobs:
        raise ValueError(f"no images found in {source}")
    _begin(name, source, output_dir, {"set": name, "image_size": image_size, "images": len(jobs)})
    written, kept, unreadable = 0, 0, []
    for path, folder in tqdm(jobs, desc=name, unit="image"):
        file = output_dir / folder / (path.name if path.suffix == ".png" else f"{path.name}.png")
        if file.exists():
            kept += 1
            continue
        try:
            with Image.open(path) as opened:
                image = to_rgb(opened)
        except Exception as error:  # Pillow's decoders raise many types
            unreadable.append(f"{path.name}: {type(error).__name__}")
            continue
        content = BytesIO()
        crop(image, image_size).save(content, format="png")
        write_whole(file, content.getvalue())
        written += 1
    if unreadable:
        logger.warning("%d unreadable images are skipped (%s)", len(unreadable), "; ".join(unreadable[:5]))
    chosen = {path for path, _ in jobs}
    others = Counter(file.reason or "not chosen" for file in list_files(source) if file.path not in chosen)
    return Prepared(written, kept, len(unreadable), dict(others))


def _begin(name: str, source: Path, output_dir: Path, settings: dict[str, str | int]) -> None:
    inside, outside = output_dir.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(
            f"the output folder {output_dir} and the source {source} lie in one another; pass another folder"
        )
    record = output_dir / RECORD
    if record.is_file():
        before = read_json(record)
        if before != settings:
            raise ValueError(
                f"{output_dir} was begun with {before}, now it is {settings}; pass another output folder, or delete it"
            )
    elif output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"the output folder {output_dir} is not empty; pass a new one for {name}")
    else:
        write_json(record, settings)
