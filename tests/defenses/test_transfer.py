"""Which weights transfer learning freezes, name by name."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.transfer import Transfer, TransferConfig
from calor_hf.heads.find_head import NoHead
from calor_hf.modeling import DefendedForImageClassification
from tests.tiny_models import EVERY, KINDS, tiny_base

COUNTS = ("leaf", "param_leaf", "params", "children")


class Net(nn.Module):
    """Seven leaves, four of them with weights; 25 weights, one of them on no leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU())
        self.body = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 3, bias=False))
        self.classifier = NoHead()


STEM = ["stem.0.weight", "stem.1.weight", "stem.1.bias"]
BODY = ["body.0.weight", "body.0.bias", "body.2.weight"]

RESNET_PARTS = {
    "embedder": ["embedder.embedder.convolution.weight", "embedder.embedder.normalization.{}"],
    "first": ["encoder.stages.0.layers.0.layer.0.convolution.weight",
              "encoder.stages.0.layers.0.layer.0.normalization.{}",
              "encoder.stages.0.layers.0.layer.1.convolution.weight",
              "encoder.stages.0.layers.0.layer.1.normalization.{}"],
    "shortcut": ["encoder.stages.1.layers.0.shortcut.convolution.weight",
                 "encoder.stages.1.layers.0.shortcut.normalization.{}"],
    "second": ["encoder.stages.1.layers.0.layer.0.convolution.weight",
               "encoder.stages.1.layers.0.layer.0.normalization.{}",
               "encoder.stages.1.layers.0.layer.1.convolution.weight",
               "encoder.stages.1.layers.0.layer.1.normalization.{}"],
}  # fmt: skip


def resnet_names(*parts: str) -> list[str]:
    """Names of the parameters of some parts of the tiny ResNet."""
    names = []
    for part in parts:
        for name in RESNET_PARTS[part]:
            names += [f"resnet.{name.format(end)}" for end in (("weight", "bias") if "{}" in name else ("",))]
    return names


def frozen(backbone: nn.Module, ratio: float, by: str) -> list[str]:
    return Transfer(TransferConfig(freeze_ratio=ratio, count_by=by)).frozen(backbone)


def backbone_of(kind: str) -> Any:
    return DefendedForImageClassification.from_base(tiny_base(kind), "transfer").backbone


@pytest.mark.parametrize(
    ("by", "ratio", "names"),
    [
        # Leaves: stem.0, stem.1, stem.2, body.0, body.1, body.2, classifier; i < 3.5 are the first four.
        ("leaf", 0.5, ["scale", *STEM, "body.0.weight", "body.0.bias"]),
        # i < 5/7 · 7 = 5: Dropout is the fifth.
        ("leaf", 5 / 7, ["scale", *STEM, "body.0.weight", "body.0.bias"]),
        ("leaf", 0.72, ["scale", *STEM, *BODY]),
        ("leaf", 0.01, ["scale", "stem.0.weight"]),
        # With weights: stem.0, stem.1, body.0, body.2; i < 2.
        ("param_leaf", 0.5, ["scale", *STEM]),
        ("param_leaf", 0.51, ["scale", *STEM, "body.0.weight", "body.0.bias"]),
        # 1 + 2 + 2 + 2 + 6 + 3 + 9 = 25 weights. Half are 12.5: after 7 of them 5.5 are left, more than half of 6.
        ("params", 0.5, ["scale", *STEM, "body.0.weight"]),
        # 0.36 · 25 = 9: after 7 there are 2 left, less than half of 6.
        ("params", 0.36, ["scale", *STEM]),
        # Blocks: stem and, as body has 18 of 25 weights, its two layers of 9; i < 1.5 are two, i < 0.9 is one.
        ("children", 0.5, ["scale", *STEM, "body.0.weight", "body.0.bias"]),
        ("children", 0.3, ["scale", *STEM]),
    ],
)
def test_names_worked_out_by_hand(by: str, ratio: float, names: list[str]) -> None:
    assert frozen(Net(), ratio, by) == names


@pytest.mark.parametrize("by", COUNTS)
def test_nothing_and_everything(by: str) -> None:
    assert frozen(Net(), 0, by) == []
    assert frozen(Net(), 1, by) == ["scale", *STEM, *BODY]


@pytest.mark.parametrize(
    ("by", "ratio", "parts"),
    [
        # 24 leaves: embedder 4 (with pooling), first stage 8, shortcut 2, the rest of the second stage 7, pooling,
        # flattening, classifier. i < 12 ends with the first stage; i < 13.2 with the shortcut's second leaf.
        ("leaf", 0.5, ["embedder", "first"]),
        ("leaf", 0.55, ["embedder", "first", "shortcut"]),
        # 12 leaves with weights: 2, 4, 2, 4. i < 6; i < 7.2.
        ("param_leaf", 0.5, ["embedder", "first"]),
        ("param_leaf", 0.6, ["embedder", "first", "shortcut"]),
        # 1192 + 1184 + 160 + 3520 = 6056 weights. Half are 3028: 492 are left after the shortcut, and a convolution of
        # 1152 comes.
        ("params", 0.5, ["embedder", "first", "shortcut"]),
        # Blocks: embedder, first stage and, as the second has more than half of the weights, its three parts: shortcut,
        # two layers. i < 2; i < 2.5.
        ("children", 0.4, ["embedder", "first"]),
        ("children", 0.5, ["embedder", "first", "shortcut"]),
    ],
)
def test_names_of_a_resnet(by: str, ratio: float, parts: list[str]) -> None:
    assert sorted(frozen(backbone_of("resnet"), ratio, by)) == sorted(resnet_names(*parts))


@pytest.mark.parametrize("by", ["leaf", "param_leaf", "children"])
def test_half_of_a_vit_is_its_embeddings_and_first_layer(by: str) -> None:
    # Leaves: projection, dropout, 10 a layer (11 before transformers 5), norm, classifier: i < 12 (13) ends with the
    # first layer. With weights 1, 8, 8, 1: i < 9. Blocks: embeddings, two layers, norm: i < 2.
    backbone = backbone_of("vit")
    names = [name for name, _ in backbone.named_parameters()]
    expected = [name for name in names if ".embeddings." in name or re.search(r"\.layers?\.0\.", name)]
    assert len(expected) == 4 + 16
    assert frozen(backbone, 0.5, by) == expected
    assert {name for name in expected if "position" in name or "cls" in name} == {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
    }


def test_half_of_the_weights_of_a_vit() -> None:
    # 16 + 272 + 3072 + 16 = 3376, twice 2224, 32: 7856. In the half, 3928, 552 are left after the embeddings: query and
    # key take 544 of them, and value would be 256.
    backbone = backbone_of("vit")
    names = [name for name, _ in backbone.named_parameters()]
    found = frozen(backbone, 0.5, "params")
    assert found == names[:8]
    assert [re.sub(r".*attention\.", "", name) for name in found[4:]] in (
        ["q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"],
        ["query.weight", "query.bias", "key.weight", "key.bias"],
    )


@pytest.mark.parametrize("by", ["leaf", "param_leaf", "children"])
def test_positions_and_class_token_are_frozen_as_soon_as_anything_is(by: str) -> None:
    assert frozen(backbone_of("vit"), 1e-6, by) == [
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.embeddings.patch_embeddings.projection.bias",
    ]
    assert frozen(backbone_of("vit"), 0, by) == []


@pytest.mark.parametrize("by", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_classifier_always_learns(kind: str, by: str) -> None:
    model = DefendedForImageClassification.from_base(tiny_base(kind), "transfer", freeze_ratio=1.0, count_by=by)
    defense: Any = model.defense
    names = defense.frozen(model.backbone)
    assert names == [name for name, _ in model.backbone.named_parameters()]
    inside = {id(parameter) for parameter in model.backbone.parameters()}
    assert inside.isdisjoint(id(parameter) for parameter in model.classification_head.parameters())
    assert sum(parameter.numel() for parameter in model.classification_head.parameters()) > 0


@pytest.mark.parametrize("by", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_more_is_frozen_with_a_larger_ratio(kind: str, by: str) -> None:
    backbone = backbone_of(kind)
    last: set[str] = set()
    for ratio in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1):
        names = frozen(backbone, ratio, by)
        assert len(set(names)) == len(names)
        assert last <= set(names) <= {name for name, _ in backbone.named_parameters()}
        last = set(names)


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_are_those_of_the_published_rule(kind: str) -> None:
    # Walked by hand: children before their parents' next sibling, and a leaf is what has no children.
    backbone = backbone_of(kind)
    leaves: list[tuple[str, nn.Module]] = []

    def walk(path: str, module: nn.Module) -> None:
        children = list(module.named_children())
        for name, child in children:
            walk(f"{path}.{name}" if path else name, child)
        if not children:
            leaves.append((path, module))

    walk("", backbone)
    own = {f"{path}.{name}" for path, leaf in leaves for name, _ in leaf.named_parameters()}
    for ratio in (0.1, 0.5, 0.7):
        expected = {
            f"{path}.{name}"
            for i, (path, leaf) in enumerate(leaves)
            if i < ratio * len(leaves)
            for name, _ in leaf.named_parameters()
        }
        assert set(frozen(backbone, ratio, "leaf")) & own == expected


@pytest.mark.parametrize("by", ["leaf", "param_leaf", "children"])
@pytest.mark.parametrize("kind", ["convnext", "beit", "swinv2"])
def test_deep_layers_learn_while_early_ones_are_frozen(kind: str, by: str) -> None:
    # Layer scales and logit scales belong to no leaf either, but stand nowhere near the pixels.
    last_block = {"convnext": r"\.stages\.1\.", "beit": r"\.layers?\.1\.", "swinv2": r"\.layers\.1\."}[kind]
    deep = [name for name in frozen(backbone_of(kind), 0.1, by) if re.search(last_block, name)]
    assert deep == []


@pytest.mark.parametrize("class_name", EVERY)
def test_half_of_the_blocks_are_not_the_whole_model(class_name: str) -> None:
    backbone = backbone_of(class_name)
    weights = [name for name, _ in backbone.named_parameters()]
    assert 0 < len(frozen(backbone, 0.5, "children")) < len(weights)


def test_frozen_batch_norms_stand_still_only_if_asked_to() -> None:
    backbone = backbone_of("resnet")
    drifting = Transfer(TransferConfig(freeze_ratio=0.5))
    assert drifting.fixed_batch_norms(backbone) == []
    fixed = Transfer(TransferConfig(freeze_ratio=0.5, freeze_bn_stats=True))
    assert fixed.fixed_batch_norms(backbone) == [
        backbone.resnet.embedder.embedder.normalization,
        backbone.resnet.encoder.stages[0].layers[0].layer[0].normalization,
        backbone.resnet.encoder.stages[0].layers[0].layer[1].normalization,
    ]
    net = Net()
    assert fixed.fixed_batch_norms(net) == [net.stem[1]]
    learning = Transfer(TransferConfig(freeze_ratio=0.1, freeze_bn_stats=True))
    assert learning.fixed_batch_norms(net) == []


def test_loss_is_cross_entropy() -> None:
    # −log(e / (e + 1)) and ln 2.
    out = Forward(torch.tensor([[1.0, 0.0], [3.0, 3.0]]), torch.tensor([0, 1]))
    terms = Transfer(TransferConfig()).loss(out, Progress.at_end("fit"))
    assert {name: value.item() for name, value in terms.items()} == {
        "cross_entropy": pytest.approx((math.log1p(math.exp(-1)) + math.log(2)) / 2)
    }


def test_training_without_the_trainer_is_refused(images: Tensor) -> None:
    model = DefendedForImageClassification.from_base(tiny_base("resnet"), "transfer").train()
    with pytest.raises(
        RuntimeError, match=r"'transfer' changes batches or freezes weights.*train it with DefenseTrainer"
    ):
        model(images, labels=torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_ratios_that_are_no_shares_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"freeze_ratio must be .*in \[0, 1\], got"):
        TransferConfig(freeze_ratio=ratio)


def test_unknown_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown count_by 'layers'; pass one of leaf, param_leaf, params, children"):
        TransferConfig(count_by="layers")
