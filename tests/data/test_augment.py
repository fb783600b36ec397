import numpy as np
import pytest
from PIL import Image

from calor_hf.core.seeding import named_rng
from calor_hf.data.augment import _random_square, _turn_hue, augmentation_for, crop_color_flip, flip


def random_image(width: int = 40, height: int = 40) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.tobytes() == b.tobytes()


def test_flip_mirrors_half_of_the_draws() -> None:
    image = random_image()
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    results = [flip(image, named_rng(0, "tests/augment", i)) for i in range(400)]
    count = sum(same(result, mirrored) for result in results)
    assert count + sum(same(result, image) for result in results) == 400
    assert 160 < count < 240


@pytest.mark.parametrize("size", [(40, 40), (50, 40), (40, 45), (400, 20)])
def test_crop_is_square_inside_and_of_the_papers_area(size: tuple[int, int]) -> None:
    width, height = size
    for index in range(50):
        crop = _random_square(random_image(width, height), named_rng(index, "tests/augment"))
        assert crop.width == crop.height <= min(size)
        if size == (40, 40):
            assert 0.85 * 1600 - 80 <= crop.width**2 <= 1600
    assert len({_random_square(random_image(), named_rng(i, "tests/augment")).size for i in range(50)}) > 2


def test_turning_the_hue_a_third_moves_red_to_green() -> None:
    red = Image.new("RGB", (1, 1), (200, 0, 0))
    pixel = np.asarray(_turn_hue(red, 1 / 3))[0, 0]
    assert pixel[1] > 190
    assert pixel[0] < 10


def test_draws_depend_on_the_key_alone() -> None:
    image = random_image()
    first, second = (crop_color_flip(image, named_rng(3, "tests/augment", 1, 7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not same(first, crop_color_flip(image, named_rng(3, "tests/augment", 2, 7)))


def test_auto_is_the_papers_choice_for_the_size() -> None:
    assert augmentation_for("auto", 64) is flip
    assert augmentation_for("auto", 224) is crop_color_flip
    assert augmentation_for("none", 224) is None
    with pytest.raises(ValueError, match="pass auto, none, flip, crop_color_flip"):
        augmentation_for("mirror", 64)
