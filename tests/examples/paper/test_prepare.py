"""The paper's image sets from made-up files of the same layout; crops are checked by their pixels."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from calor_hf.data.loading import load_images, load_splits
from examples.paper.__main__ import main
from examples.paper.prepare import (
    SETS,
    celeba_crop,
    facescrub_crop,
    ffhq_crop,
    prepare_celeba,
    prepare_facescrub,
    prepare_ffhq,
    prepare_imagenette,
    square_crop,
)
from tests.data.made_up_sets import make_celeba, make_facescrub, make_ffhq, make_imagenette, save


@pytest.fixture
def facescrub(tmp_path: Path) -> Path:
    return make_facescrub(tmp_path / "FaceScrub")


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    whose = [7, 3, 7, 9, 3, 3, 9, 2]  # three of 3; two each of 7 and 9, 7 listed first; one of 2
    return make_celeba(tmp_path / "CelebA", whose)


@pytest.fixture
def ffhq(tmp_path: Path) -> Path:
    return make_ffhq(tmp_path / "ffhq")


@pytest.fixture
def imagenette(tmp_path: Path) -> Path:
    return make_imagenette(tmp_path / "imagenette2-160")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def coordinates(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


def shown(image: Image.Image) -> tuple[float, float, float, float]:
    """Columns and rows of the first and last pixel: (left, top, right, bottom)."""
    pixels: NDArray[np.float64] = np.asarray(image).astype(np.float64)
    return pixels[0, 0, 0], pixels[0, 0, 1], pixels[-1, -1, 0], pixels[-1, -1, 1]


@pytest.mark.parametrize(
    ("crop", "image", "size", "box"),
    [
        # (178 − 108) / 2 = 35 and (218 − 108) / 2 = 55.
        (celeba_crop, (178, 218), 108, (35, 55, 142, 162)),
        # (128 − 88) / 2 = 20.
        (ffhq_crop, (128, 128), 88, (20, 20, 107, 107)),
        # Above 112 pixels: round(0.78125 · 200) = 156, (200 − 156) / 2 = 22.
        (ffhq_crop, (200, 200), 156, (22, 22, 177, 177)),
        # Above 112 pixels FaceScrub is only resized.
        (facescrub_crop, (120, 120), 120, (0, 0, 119, 119)),
        # (200 − 160) / 2 = 20 columns left out at each side.
        (square_crop, (200, 160), 160, (20, 0, 179, 159)),
    ],
)  # fmt: skip
def test_crop_shows_the_pixels_worked_out_by_hand(
    crop: Callable[[Image.Image, int], Image.Image],
    image: tuple[int, int],
    size: int,
    box: tuple[int, int, int, int],
) -> None:
    assert shown(crop(coordinates(*image), size)) == box  # the crop has the size of the result: nothing is resampled


def test_low_resolution_facescrub_is_cut_after_resizing() -> None:
    # 64 pixels: nothing to resize at first; the middle 54 are columns 5 to 58, which 64 pixels then share: the first
    # and the last still show the border's value.
    assert shown(facescrub_crop(coordinates(64, 64), 64)) == (5, 5, 58, 58)
    # 54 · 112 / 64 = 94.5, rounded down as in the source; (112 − 94) / 2 = 9.
    assert shown(facescrub_crop(coordinates(112, 112), 112)) == (9, 9, 102, 102)
    # Faces that are not square are squeezed: of 128 columns 64 remain.
    left, top, right, bottom = shown(facescrub_crop(coordinates(128, 64), 64))
    assert (top, bottom) == (5, 58)
    assert left == pytest.approx(10.5, abs=1)
    assert right == pytest.approx(116.5, abs=1)


def test_facescrub(facescrub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    (facescrub / "facescrub_actors.txt").write_text("a list")
    done = prepare_facescrub(facescrub, out)
    assert (done.written, done.kept, done.unreadable, done.others) == (12, 0, 1, {"no image (.txt)": 1})
    assert "found 3, the complete set has 530" in caplog.text
    assert "Al Bo_4.jpeg: UnidentifiedImageError" in caplog.text
    splits = load_splits(str(out))
    assert splits.label_names == ["actors_Al Bo", "actors_Zed Ox", "actresses_Ann Di"]  # actors first
    assert len(splits.test) + 1 >= 3  # one each; the unreadable one may have been chosen
    assert splits.train[0]["image"].size == (64, 64)


def test_a_second_call_writes_only_what_is_missing(facescrub: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_facescrub(facescrub, out)
    all_files = files(out)
    first, second = out / all_files[0], out / all_files[1]
    first.unlink()
    second.write_bytes(b"kept as it is")
    done = prepare_facescrub(facescrub, out)
    assert (done.written, done.kept) == (1, 11)
    assert files(out) == all_files
    assert second.read_bytes() == b"kept as it is"


def test_celeba_takes_the_most_frequent_in_order(celeba: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare_celeba(celeba, out, identities=3).written == 7
    by_class = {name: sorted(f.split("/")[2] for f in files(out) if f.split("/")[1] == name) for name in
                ("0000_3", "0001_7", "0002_9")}  # fmt: skip
    assert by_class == {
        "0000_3": ["000002.jpg.png", "000005.jpg.png", "000006.jpg.png"],
        "0001_7": ["000001.jpg.png", "000003.jpg.png"],
        "0002_9": ["000004.jpg.png", "000007.jpg.png"],
    }
    assert len([name for name in files(out) if name.startswith("test/")]) == 3
    name = next(name for name in files(out) if name.endswith("000004.jpg.png"))
    with Image.open(celeba / "Img" / "img_align_celeba" / "000004.jpg") as original, Image.open(out / name) as result:
        box = original.convert("RGB").crop((35, 55, 143, 163)).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(box), np.asarray(result))


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/x.jpg", "a\\b.jpg", "a.jpg b"])
def test_celeba_names_lead_nowhere_else(celeba: Path, tmp_path: Path, name: str) -> None:
    listed = celeba / "Anno" / "identity_CelebA.txt"
    listed.write_text(listed.read_text() + f"{name} 3\n")
    with pytest.raises(ValueError, match=r"line 9: expected 'IMAGE\.jpg NUMBER'"):
        prepare_celeba(celeba, tmp_path / "out", identities=3)
    assert not (tmp_path / "out").exists()


def test_ffhq_becomes_one_folder(ffhq: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare_ffhq(ffhq, out).written == 3
    assert files(out) == ["00000.png", "00001.png", "01000.png"]
    images = load_images(str(out))[0]
    assert (len(images), images[0]["image"].size) == (3, (64, 64))
    assert prepare_ffhq(ffhq / "thumbnails128x128", tmp_path / "again").written == 3
    with pytest.raises(ValueError, match=r"at least 328 pixels for --image-size 256, got 128 x 128"):
        prepare_ffhq(ffhq, tmp_path / "large", image_size=256)


def test_imagenette_keeps_its_splits(imagenette: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare_imagenette(imagenette, out, image_size=32).written == 10
    splits = load_splits(str(out))
    assert splits.label_names == ["n01440764", "n03888257"]
    assert len(splits.test) == 4


@pytest.mark.parametrize("name", sorted(SETS))
def test_command_refuses_a_wrong_source(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong" / "something").mkdir(parents=True)
    argv = ["prepare", name, "--source", str(tmp_path / "wrong"), "--output-dir", str(tmp_path / "out")]
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "expected" in message
    assert "found something" in message
    assert not (tmp_path / "out").exists()


def test_command_and_the_folders_that_it_refuses(
    imagenette: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.as_posix() for path in imagenette.rglob("*"))

    def run(output: Path, *more: str) -> tuple[int, str]:
        status = main(["prepare", "imagenette", "--source", str(imagenette), "--output-dir", str(output), *more])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    status, shown_text = run(tmp_path / "out")
    assert status == 0
    assert "10 images written, 0 were there, 0 unreadable" in shown_text
    assert "0 images written, 10 were there" in run(tmp_path / "out")[1]
    assert "was begun with" in run(tmp_path / "out", "--image-size", "32")[1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    assert "is not empty" in run(tmp_path / "mine")[1]
    assert "lie in one another" in run(imagenette / "out")[1]
    assert "lie in one another" in run(tmp_path)[1]
    assert "at least one pixel" in run(tmp_path / "small", "--image-size", "0")[1]
    assert sorted(path.as_posix() for path in imagenette.rglob("*")) == before
    logging.getLogger("calor_hf").handlers.clear()


def test_odd_sets_are_refused(facescrub: Path, celeba: Path, tmp_path: Path) -> None:
    (facescrub / "actresses" / "faces" / "Eve Eo").mkdir()
    with pytest.raises(ValueError, match=r"expected images in .*Eve Eo, found none"):
        prepare_facescrub(facescrub, tmp_path / "out")
    save(facescrub / "actresses" / "faces" / "Eve Eo" / "one.jpg", 0, (9, 9))
    with pytest.raises(ValueError, match="class actresses_Eve Eo has 1 image"):
        prepare_facescrub(facescrub, tmp_path / "out")
    with pytest.raises(ValueError, match="class 0003_2 has 1 image"):
        prepare_celeba(celeba, tmp_path / "out")
    images = celeba / "Img" / "img_align_celeba"
    save(images / "000001.jpg", 0, (64, 64))
    with pytest.raises(ValueError, match="aligned images of 178 x 218 pixels, got 64 x 64"):
        prepare_celeba(celeba, tmp_path / "wild", identities=3)
    (images / "000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 images of the list are missing"):
        prepare_celeba(celeba, tmp_path / "none", identities=3)
    (celeba / "Anno" / "identity_CelebA.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected CelebA's list identity_CelebA.txt"):
        prepare_celeba(celeba, tmp_path / "none", identities=3)
