"""The paper's image sets, made up: a few drawn faces in the layout in which each set is distributed."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from calor_hf.data.synthetic_faces import load_synthetic_faces

FACES = load_synthetic_faces(4, 3, 64)


def face(index: int, size: tuple[int, int]) -> Image.Image:
    image: Image.Image = FACES[index % len(FACES)]["image"]
    return image.resize(size)


def save(path: Path, index: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    face(index, size).save(path)


def make_facescrub(root: Path) -> Path:
    """Three people of four images each, and one file that is no image."""
    for group, identities in (("actors", ("Zed Ox", "Al Bo")), ("actresses", ("Ann Di",))):
        for person in identities:
            for i in range(4):
                save(root / group / "faces" / person / f"{person}_{i}.jpeg", i, (90, 120))
    (root / "actors" / "faces" / "Al Bo" / "Al Bo_4.jpeg").write_bytes(b"404 not found")
    return root


def make_celeba(root: Path, whose: Sequence[int]) -> Path:
    """A image for each identity number in ``whose``."""
    for i in range(len(whose)):
        save(root / "Img" / "img_align_celeba" / f"{i + 1:06d}.jpg", i, (178, 218))
    (root / "Anno").mkdir()
    lines = [f"{i + 1:06d}.jpg {identity}\n" for i, identity in enumerate(whose)]
    (root / "Anno" / "identity_CelebA.txt").write_text("".join(lines))
    return root


def make_ffhq(root: Path) -> Path:
    """Three thumbnails in two folders of a thousand."""
    for i in (0, 1, 1000):
        save(root / "thumbnails128x128" / f"{i // 1000 * 1000:05d}" / f"{i:05d}.png", i, (128, 128))
    return root


def make_imagenette(root: Path) -> Path:
    """Two classes of three training and two validation images."""
    for split, count in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n03888257"):
            for i in range(count):
                save(root / split / wnid / f"{wnid}_{i}.JPEG", i, (200, 160))
    return root
