"""Network that recognizes the identity numbers of a drawn face, trained only on drawn faces of other people."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from calor_hf.auditing.networks import Network
from calor_hf.core.files import read_tensors, write_whole
from calor_hf.core.fit import fit, minibatches
from calor_hf.core.seeding import named_rng, torch_seed
from calor_hf.data.face_renderer import IDENTITY_NAMES, NUISANCE_NAMES, render_faces

SIDE, FACES, EPOCHS, BATCH = 32, 16_000, 6, 128
NAME = "attributes of drawn faces"


class _Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        hidden = [nn.Flatten(), nn.Linear(widths[-1] * (SIDE // 8) ** 2, 256), nn.ReLU()]
        self.layers = nn.Sequential(*blocks, *hidden, nn.Linear(256, len(IDENTITY_NAMES)))

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        numbers: Tensor = self.layers(x)
        return numbers


def attribute_network(file: Path, share: float = 1.0) -> Network:
    """Return an embedding of drawn faces by their 24 identity numbers, trained once (about a minute) and kept.

    It is never trained on an enrolled face: its training faces have identities of their own.

    Args:
        file: Where its weights are kept.
        share: Share of the training faces; less than all is for a plan of the time.
    """
    network = _Attributes()
    if file.is_file():
        network.load_state_dict(read_tensors(file)[0])
    else:
        _train(network, round(share * FACES))
        write_whole(file, save(network.state_dict()))
    return Network(NAME, network, network)


def _train(network: nn.Module, count: int) -> None:
    rng = named_rng(0, "auditing/attribute-network/faces")
    identity, nuisance = (
        torch.from_numpy(rng.uniform(-1, 1, (count, len(names)))).float() for names in (IDENTITY_NAMES, NUISANCE_NAMES)
    )
    with torch.no_grad():
        faces = (render_faces(identity, nuisance, SIDE) * 255).round().byte()

    def batches(epoch: int) -> Iterator[Tensor]:
        yield from minibatches(count, BATCH, named_rng(0, "auditing/attribute-network/order", epoch))

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(torch_seed(0, "auditing/attribute-network"))
        for part in network.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.reset_parameters()
        optimizer = torch.optim.AdamW(network.train().parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, eta_min=1e-5)
        fit(
            lambda rows: F.mse_loss(network(faces[rows].float() / 255), identity[rows]), optimizer, batches, EPOCHS,
            name="the network of attributes", schedule=schedule,
        )  # fmt: skip
    network.eval()
