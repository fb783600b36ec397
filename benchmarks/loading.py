"""Whether loading keeps up: images decoded and augmented a second against what ViT-B/16 at 224 pixels can train on.

JPEG files of 500 x 400 pixels through the data path of ``calor-hf train``, with the augmentation it chooses at that
size, on one core; the model's forward and backward passes on the same core. Loading is done by workers next to the
model, so a ratio of 2 leaves it half a core to spare.
"""

import io
import time

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from benchmarks._paired import paired_ratio, show
from calor_hf.data.augment import augmentation_for
from calor_hf.data.images import ImageDataset

PAIRS, IMAGES, BATCH = 5, 32, 4


def jpeg_files(count: int) -> datasets.Dataset:
    """``count`` JPEG images of smooth noise, encoded as on a disk."""
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((500, 400), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": files, "label": list(range(count))}, features=features)


def main() -> None:
    """Print the ratio of the rates."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = ImageDataset(jpeg_files(IMAGES), ViTImageProcessor(), augmentation_for("auto", 224), keep_bytes=0)
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=100)).train()
    inputs = torch.stack([data[index]["pixel_values"] for index in range(BATCH)])

    def loading() -> float:
        begin = time.perf_counter()
        for index in range(IMAGES):
            data[index]
        return IMAGES / (time.perf_counter() - begin)

    def training() -> float:
        begin = time.perf_counter()
        model(pixel_values=inputs, labels=torch.arange(BATCH)).loss.backward()
        model.zero_grad()
        return BATCH / (time.perf_counter() - begin)

    loading(), training()
    show(
        "images/s on one core, loading / ViT-B/16 at 224",
        paired_ratio(loading, training, PAIRS),
        ">= 2",
        "JPEG decoder",
    )
    torch.set_num_threads(threads)
