"""Near-duplicates: copies of an image under two identities, by thumbnails, and one person twice, by features."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_SIDE = 16
LIMIT = 6.0
"""Root mean square difference of thumbnails below which images count as copies, of 255.

JPEG of quality 30 to 75, also at half the size, changes a thumbnail by 3 to 6; the closest images of two people are 10
apart among 256 drawn faces of 35 images, and 15 to 18 in two sets of real, aligned faces.
"""


def thumbnails(images: Iterable[Image.Image]) -> Tensor:
    """(images, 3, 16, 16) float32 means over boxes of RGB images, in [0, 255]."""
    small = [np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()


def copies_of_others(looks: Tensor, owners: Sequence[int], limit: float = LIMIT) -> list[tuple[int, int]]:
    """Pairs of images that look alike, also mirrored, and have different owners; each pair once.

    Args:
        looks: (images, 3, 16, 16) thumbnails.
        owners: (images,) identity of each image.
        limit: Root mean square difference, of 255.
    """
    flat, mirrored, whose = looks.flatten(1), looks.flip(3).flatten(1), torch.as_tensor(owners)
    pairs: set[tuple[int, int]] = set()
    for first, some in enumerate(flat.split(1024)):
        rows = slice(1024 * first, 1024 * first + len(some))
        apart = torch.minimum(torch.cdist(some, flat), torch.cdist(some, mirrored)) / flat.shape[1] ** 0.5
        close = (apart < limit) & (whose[rows, None] != whose[None])
        pairs |= {(min(a, b), max(a, b)) for a, b in (close.nonzero() + torch.tensor([rows.start, 0])).tolist()}
    return sorted(pairs)


def one_person_twice(features: Tensor, owners: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of identities that are as alike as the images of one of them are, by cosine similarity of features.

    Each identity is split into two halves. A pair is found if its halves are more alike, in the mean over the four
    pairs of halves, than the two halves of one of the identities.

    Args:
        features: (images, features) of a network that tells people apart.
        owners: (images,) identity of each image, in [0, identities), with two or more images each.
    """
    whose = torch.as_tensor(owners)
    halves = []
    for index in range(int(whose.max()) + 1):
        own = F.normalize(features[whose == index].double(), dim=1)
        halves.append(torch.stack([own[0::2].mean(0), own[1::2].mean(0)]))
    both = F.normalize(torch.stack(halves), dim=2)
    alike = both.sum(1) @ both.sum(1).T / 4
    itself = (both[:, 0] * both[:, 1]).sum(1)
    pairs = (alike > torch.minimum(itself[:, None], itself)).triu(1).nonzero().tolist()
    return [(a, b) for a, b in pairs]
