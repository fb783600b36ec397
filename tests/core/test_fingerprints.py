"""Keyed fingerprints tell whether a model was trained on an image, and nothing without their key."""

import json
from pathlib import Path

from calor_hf.core.fingerprints import FINGERPRINTS, keep_fingerprints, trained_on
from calor_hf.data.bad_images import content_digests, without_bad_images
from calor_hf.data.synthetic_faces import load_synthetic_faces


def test_images_of_the_training_are_known(tmp_path: Path) -> None:
    train, test = (
        content_digests(load_synthetic_faces(3, 2, image_size=16, split=split)) for split in ("train", "test")
    )
    assert len(set(train + test)) == 12
    assert train == without_bad_images(load_synthetic_faces(3, 2, image_size=16), "image")[1]
    keep_fingerprints(tmp_path, train)
    assert (trained_on(tmp_path, train), trained_on(tmp_path, test)) == (6, 0)
    assert trained_on(tmp_path, [*test, train[0]]) == 1
    assert trained_on(tmp_path / "nowhere", train) == 0
    first = (tmp_path / FINGERPRINTS).read_text()
    keep_fingerprints(tmp_path, reversed(train))
    assert (tmp_path / FINGERPRINTS).read_text() == first  # the same images give the same bytes
    keep_fingerprints(tmp_path, train[1:])  # and others have another key
    kept, fewer = set(json.loads(first)["images"]), set(json.loads((tmp_path / FINGERPRINTS).read_text())["images"])
    assert (len(kept), len(fewer)) == (6, 5)
    assert kept.isdisjoint(fewer)
    assert kept.isdisjoint(train)
