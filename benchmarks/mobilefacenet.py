"""Two public face networks as judges of real faces: MobileFaceNet on CASIA-WebFace (A) and on MS-Celeb-1M (B)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BLOCKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
A = ("mobilefacenet_casia_112x96.ckpt", (6, 6, 22, 6), [0.5 * 255 / 255] * 3, [128 / 255] * 3)
B = ("mobilefacenet_ms1m_112x112.pt", (14, 14, 22, 6), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class PReLU(nn.PReLU):
    """As in the library, without the gradient of frozen slopes, which takes half of an attack's time."""

    def forward(self, x: Tensor) -> Tensor:
        """Slope 1 above 0, its own below."""
        slope = self.weight.view(1, -1, 1, 1)
        return torch.addcmul(slope * x, x.relu(), 1 - slope)


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int], *rest: nn.Module, stride: int = 1, groups: int = 1,
         pad: int = 0, bias: bool = False) -> list[nn.Module]:  # fmt: skip
    """A convolution with batch norm, and what follows them."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=bias)
    return [layer, nn.BatchNorm2d(outputs), *rest]


class Block(nn.Module):
    """Inverted residual; ``flat``: layers in one sequence (network A), else in groups (B)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, flat: bool) -> None:
        super().__init__()
        hidden = inputs * expansion
        if flat:
            self.conv = nn.Sequential(
                *conv(inputs, hidden, 1, PReLU(hidden)),
                *conv(hidden, hidden, 3, PReLU(hidden), stride=stride, groups=hidden, pad=1),
                *conv(hidden, outputs, 1),
            )
        else:
            self.conv = nn.Sequential(
                nn.Sequential(*conv(inputs, hidden, 1, nn.ReLU6())),
                nn.Sequential(*conv(hidden, hidden, 3, nn.ReLU6(), stride=stride, groups=hidden, pad=1)),
                *conv(hidden, outputs, 1),
            )
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Residual if the shapes allow it."""
        y: Tensor = self.conv(x)
        return x + y if self.same else y


class Named(nn.Module):
    """Modules by name, run one after the other."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        """In order of definition."""
        for module in self.children():
            x = module(x)
        return x


def named(layers: list[nn.Module], *names: str) -> Named:
    """``layers`` under ``names``."""
    return Named(**dict(zip(names, layers, strict=True)))


def residuals(flat: bool) -> nn.Sequential:
    """The 15 blocks."""
    found, width = [], 64
    for expansion, channels, repeats, stride in BLOCKS:
        for index in range(repeats):
            found.append(Block(width, channels, stride if index == 0 else 1, expansion, flat))
            width = channels
    return nn.Sequential(*found)


def network_a() -> nn.Module:
    """MobileFaceNet as trained on CASIA-WebFace: 112 x 96 pixels."""
    return Named(
        conv1=named(conv(3, 64, 3, PReLU(64), stride=2, pad=1), "conv", "bn", "prelu"),
        dw_conv1=named(conv(64, 64, 3, PReLU(64), groups=64, pad=1), "conv", "bn", "prelu"),
        blocks=residuals(flat=True),
        conv2=named(conv(128, 512, 1, PReLU(512)), "conv", "bn", "prelu"),
        linear7=named(conv(512, 512, (7, 6), groups=512), "conv", "bn"),
        linear1=named(conv(512, 128, 1), "conv", "bn"),
        flat=nn.Flatten(),
    )


def network_b() -> nn.Module:
    """MobileFaceNet as trained on MS-Celeb-1M: 112 x 112 pixels."""
    first = conv(64, 64, 3, nn.ReLU6(), groups=64, pad=1)
    depthwise = named([*first, nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6()],
                      "depthwise", "bn1", "relu1", "pointwise", "bn2", "relu2")  # fmt: skip
    return Named(
        conv1=nn.Sequential(*conv(3, 64, 3, nn.ReLU6(), stride=2, pad=1)),
        dw_conv=depthwise,
        features=residuals(flat=False),
        conv2=nn.Sequential(*conv(128, 512, 1, nn.ReLU6())),
        gdconv=named(conv(512, 512, 7, groups=512), "depthwise", "bn"),
        conv3=nn.Conv2d(128 * 4, 128, 1),
        bn=nn.BatchNorm2d(128),
        flat=nn.Flatten(),
    )


def fold(module: nn.Module) -> None:
    """Put batch norms into the convolutions in front of them: the same answers, in half of the time."""
    before: tuple[str, nn.Module] = ("", module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
        fold(child)
        before = name, child


def framed(images: Tensor, border: tuple[int, int, int, int]) -> Tensor:
    """(batch, 3, height, width) what a network sees of faces in [0, 1]: resized to 84 pixels, ``border`` repeated."""
    x = F.interpolate(images, (84, 84), mode="bicubic", antialias=True, align_corners=False)
    return F.pad(x.clamp(0, 1), border, mode="replicate")


class Embedding(nn.Module):
    """(batch, 128) embeddings of length 2, from (batch, 3, side, side) faces in [0, 1], for any side."""

    def __init__(self, data: Path, which: str) -> None:
        super().__init__()
        file, self.border, mean, std = A if which == "A" else B
        self.net = network_a() if which == "A" else network_b()
        saved = torch.load(data / "evaluators" / file, map_location="cpu", weights_only=True)
        self.net.load_state_dict(saved["net_state_dict"] if which == "A" else saved)
        self.mean, self.std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (mean, std))
        fold(self.net.eval())
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Framed, and in the network's scale."""
        return 2 * F.normalize(self.net((framed(images, self.border) - self.mean) / self.std))
