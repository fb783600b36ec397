"""Named networks through stand-ins for their libraries: what they are fed, whence the weights, who has the name."""

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.auditing.extractors import SOURCES, StandardExtractor
from calor_hf.auditing.networks import Network, load_network
from calor_hf.metrics import METRICS, View
from calor_hf.metrics.fid import INCEPTION
from tests.auditing.test_audit import private_images_of, small_audit
from tests.metrics.small_evidence import small_evidence

LIBRARIES = {"inception_fid": "pytorch_fid", "inception_resnet_vggface2": "facenet_pytorch"}
SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class Inception(nn.Module):
    """As that of pytorch-fid: a list of one map, of images that it scales itself."""

    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []
        self.load_state_dict(torch.hub.load_state_dict_from_url((source() / "weights.pth").as_uri(), progress=False))

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen.append(images)
        return [(2 * images - 1).mean(dim=(2, 3), keepdim=True)]


class Faces(nn.Module):
    """As that of facenet-pytorch: unit features of images in [-1, 1]."""

    def __init__(self, pretrained: str | None = None) -> None:
        super().__init__()
        assert pretrained == "vggface2"
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return nn.functional.normalize(images.mean(dim=(2, 3)))


def source() -> Path:
    return Path(os.environ["TORCH_HOME"]) / "far_away"


@pytest.fixture(autouse=True)
def _libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv(SWITCH, raising=False)
    source().mkdir()
    torch.save({}, source() / "weights.pth")
    fid, inner, faces = (types.ModuleType(name) for name in ("pytorch_fid", "inception", "facenet_pytorch"))
    known: dict[Any, Any] = {inner: {"InceptionV3": Inception}, faces: {"InceptionResnetV1": Faces}}
    for module, names in known.items():
        vars(module).update(names)
    for name, module in {"pytorch_fid": fid, "pytorch_fid.inception": inner, "facenet_pytorch": faces}.items():
        monkeypatch.setitem(sys.modules, name, module)


def images() -> Tensor:
    ramp = torch.linspace(0, 1, 16).expand(2, 3, 16, 16)
    return ramp * torch.tensor([1.0, 0.5])[:, None, None, None]


@pytest.mark.parametrize(
    ("name", "side", "low", "high"),
    # Input of the network itself; pytorch-fid's then makes [-1, 1] of [0, 1], and [-3, 1] of [-1, 1].
    [
        ("inception_fid", 16, 0, 1),
        ("inception_fid_legacy_range", 16, -1, 1),
        ("inception_resnet_vggface2", 160, -1, 1),
        ("inception_resnet_vggface2_legacy_scale", 160, 0, 1),
    ],
)
def test_what_a_network_is_fed(name: str, side: int, low: float, high: float) -> None:
    network = load_network(name)
    assert network.name == name
    assert network.head is None
    features, logits = network.outputs((255 * images()).round().byte())
    assert features.shape == (2, 3)
    assert logits is None
    inner: Any = network.module.network
    (given,) = inner.seen
    assert tuple(given.shape) == (2, 3, side, side)
    assert (given.min().item(), given.max().item()) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert given[1].max().item() == pytest.approx((low + high) / 2, abs=0.02)


def test_features_are_the_libraries_own() -> None:
    found, _ = load_network("inception_fid").outputs(images())
    torch.testing.assert_close(found, (2 * images() - 1).mean(dim=(2, 3)))
    unit, _ = load_network("inception_resnet_vggface2").outputs(images())
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))


def test_only_weights_are_read_of_what_was_fetched(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save(Evil(), source() / "weights.pth")
    with pytest.raises(ValueError, match="pytorch_fid has no weights for 'inception_fid'"):
        load_network("inception_fid")
    assert not (tmp_path / "owned").exists()
    assert SWITCH not in os.environ


def test_the_switch_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    load_network("inception_fid")
    assert os.environ[SWITCH] == "0"


@pytest.mark.parametrize("name", SOURCES)
def test_a_library_that_is_not_there_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, SOURCES[name].module, None)
    with pytest.raises(ValueError, match=f"'{name}' is a network of .*does not import here") as found:
        load_network(name)
    (library,) = (known for start, known in LIBRARIES.items() if name.startswith(start))
    for words in (
        library,
        "pip install",
        library.replace("_", "-"),
        f"for torch {torch.__version__}",
        "module:function",
    ):
        assert words in str(found.value)


def test_a_torchvision_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "facenet_pytorch", Broken("facenet_pytorch"))
    with pytest.raises(ValueError, match="operator torchvision::nms does not exist"):
        load_network("inception_resnet_vggface2")


def test_weights_that_cannot_be_fetched_are_named_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source() / "weights.pth").unlink()
    with pytest.raises(ValueError, match="pytorch_fid has no weights for 'inception_fid'") as found:
        load_network("inception_fid")
    assert "pt_inception-2015-12-05-6726825d.pth" in str(found.value)
    assert f"into {tmp_path / 'hub' / 'checkpoints'};" in str(found.value)

    def offline(self: Any, pretrained: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(Faces, "__init__", offline)
    with pytest.raises(ValueError, match="no route to host") as found:
        load_network("inception_resnet_vggface2")
    assert "20180402-114759-vggface2.pt" in str(found.value)
    assert f"into {tmp_path / 'checkpoints'};" in str(found.value)  # that library has a folder of its own


@pytest.mark.parametrize("name", SOURCES)
def test_no_other_network_has_the_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' belongs to the network that published tables use"):
        load_network(nn.Flatten(), name)
    with pytest.raises(ValueError, match="give yours another name"):
        Network(name, nn.Flatten(), nn.Flatten())
    other = StandardExtractor(next(known for known in SOURCES if known != name))
    with pytest.raises(ValueError, match=f"'{name}' belongs"):
        Network(name, other, other)
    assert load_network(other, name).name == other.name


def test_a_class_of_that_name_is_refused() -> None:
    mine = type(INCEPTION, (nn.Flatten,), {})()
    with pytest.raises(ValueError, match="give yours another name"):
        load_network(mine)
    assert load_network(mine, "mine").name == "mine"


@pytest.mark.parametrize(("name", "measure"), [
    ("inception_fid", "fid"), ("inception_fid_legacy_range", "frechet_distance"),
    ("inception_resnet_vggface2", "frechet_distance"),
])  # fmt: skip
def test_only_its_numbers_are_called_fid(name: str, measure: str) -> None:
    evidence, network = small_evidence(), load_network(name)
    features, private = (network.outputs(some)[0] for some in (evidence.images, evidence.private_images))
    view = View(name, features, private)
    (found,) = METRICS.get("fid")().measure(small_evidence(extractor=view))
    assert found.name == measure


def test_an_audit_takes_them_by_name(tmp_path: Path) -> None:
    report = small_audit(
        tmp_path / "out", attacks=["gmi:steps=2"], extractor="inception_fid", embedding="inception_resnet_vggface2",
        metrics=["fid", "kid", "feature_distance"],
    )  # fmt: skip
    names = [measure.name for measure in report.attacks[0].measures]
    assert names == ["fid", "kid", "delta_eval", "delta_eval_recognized", "delta_face"]
    assert report.networks["extractor"].name == "inception_fid"
    assert private_images_of().name == report.data.name


def test_an_audit_is_refused_before_any_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_fid.inception", None)
    with pytest.raises(ValueError, match="pip install pytorch-fid"):
        small_audit(tmp_path / "out", extractor="inception_fid")
    assert not (tmp_path / "out").exists()
