"""The deal of decoys on made-up people, and copies of images."""

import io

import numpy as np
import pytest
from PIL import Image

from calor_hf.data.decoys import Person, deal, identities_per_class
from calor_hf.data.near_duplicates import copies_of_others, thumbnails
from calor_hf.data.synthetic_faces import load_synthetic_faces


def people(counts: list[int], private: bool, strata: str = "") -> list[Person]:
    """People with so many training images each, one validation and two test images, by letter of their stratum."""
    return [
        Person(
            f"{'private' if private else 'pool'} {i}", private,
            {"train": range(100 * i, 100 * i + count), "validation": [i], "test": [2 * i, 2 * i + 1]},
            strata[i] if strata else None,
        )
        for i, count in enumerate(counts)
    ]  # fmt: skip


def test_every_member_of_a_class_keeps_equally_many_of_its_own_images() -> None:
    private, pool = people([5, 9, 7], True), people([3, 8, 6, 20, 4, 11, 10], False)
    classes = deal(private, pool, 3, np.random.default_rng(0))
    counts = {one.name: len(one.rows["train"]) for one in (*private, *pool)}
    dealt = [one for members in classes for one in members]
    assert len({one.name for one in dealt}) == 9
    for members in classes:
        assert sum(one.private for one in members) == 1
        smallest = min(counts[one.name] for one in members)
        assert [len(one.rows["train"]) for one in members] == [smallest] * 3
        assert [len(one.rows["test"]) for one in members] == [2] * 3
    for one in dealt:
        assert len(set(one.rows["train"])) == len(one.rows["train"])
        assert {row // 100 for row in one.rows["train"]} == {int(one.name[-1])}
    same = deal(private, pool, 3, np.random.default_rng(0), same_count=True)
    assert len({len(one.rows["train"]) for members in same for one in members}) == 1


def test_the_private_member_is_anywhere_and_the_kept_images_are_drawn() -> None:
    places, kept = np.zeros(4), np.zeros(8)
    for seed in range(400):
        ((*members,),) = deal(people([8], True), people([4, 8, 8], False), 4, np.random.default_rng(seed))
        place = next(j for j, one in enumerate(members) if one.private)
        places[place] += 1
        kept[members[place].rows["train"]] += 1
    assert (abs(places / 400 - 1 / 4) < 0.08).all()  # 0.08 is 3.7 standard deviations
    assert (abs(kept / 400 - 1 / 2) < 0.1).all()


def test_decoys_come_from_the_stratum() -> None:
    private, pool = people([4, 4, 4], True, "fmf"), people([4] * 8, False, "mmffffmm")
    for members in deal(private, pool, 3, np.random.default_rng(1)):
        assert len({one.stratum for one in members}) == 1
    with pytest.raises(ValueError, match="k=4 needs 6 identities of the stratum 'f' in the pool, and it has 4"):
        deal(private, pool, 4, np.random.default_rng(1))


@pytest.mark.parametrize(
    ("labels", "identities", "message"),
    [
        ([0, 0, 1, 1], [0, 1, 3, 2], ""),
        ([0, 0, 1], [0, 1, 2], "are not k per class"),
        ([0, 0, 1, 1], [0, 2, 1, 3], "are not k per class"),
        ([0, 0, 1, 1], [1, 2, 3, 4], "are not k per class"),
        ([0, 0, 1, 1, 1], [0, 1, 2, 3, 3], "class 1 have 1, 2 training images"),
    ],
)
def test_merged_data_are_checked(labels: list[int], identities: list[int], message: str) -> None:
    if not message:
        assert identities_per_class(labels, identities) == 2
        return
    with pytest.raises(ValueError, match=message):
        identities_per_class(labels, identities)


def test_copies_are_found_in_another_size_encoding_and_mirrored() -> None:
    faces = [row["image"] for row in load_synthetic_faces(6, 2)]
    looks = thumbnails(faces)
    owners = [index // 2 for index in range(12)]
    assert copies_of_others(looks, owners) == []
    buffer = io.BytesIO()
    faces[3].resize((40, 40)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(buffer, "JPEG", quality=85)
    again = thumbnails([*faces, Image.open(buffer).convert("RGB")])
    assert copies_of_others(again, [*owners, 5]) == [(3, 12)]
    assert copies_of_others(again, [*owners, 1]) == []  # of the same person
