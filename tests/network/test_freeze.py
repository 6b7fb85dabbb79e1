import copy

import pytest
import torch
import torchvision
from torch import nn

from finetune.errors import Refused
from finetune.network.backbone import Backbone, build_backbone
from finetune.network.depths import boundaries
from finetune.network.freeze import find_cut
from finetune.network.parts import split_at
from finetune.network.weights import load_state
from tests.network.test_backbone import scrambled

RANGES = {"block": 17, "stage": 5, "layer": 53, "tensor": 159}


@pytest.fixture(scope="module")
def resnet50() -> tuple[Backbone, nn.Module]:
    """Ours and torchvision's, with the same scrambled weights, and no classifier."""
    backbone = build_backbone("resnet50")
    load_state(backbone, scrambled(backbone))
    theirs = torchvision.models.resnet50(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(backbone.model.state_dict())
    return backbone, theirs.eval()


@pytest.mark.parametrize("unit", RANGES)
def test_suffix_of_prefix_is_torchvisions_forward_for_every_k(resnet50: tuple[Backbone, nn.Module], unit: str) -> None:
    backbone, theirs = resnet50
    x = torch.randn(1, 3, 32, 32)
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        expected = theirs(x)
        for k in range(RANGES[unit] + 1):
            cut = find_cut(backbone, k, unit)
            prefix, suffix = split_at(backbone, cut)
            if cut.modules not in seen:  # depths that share a cut share both halves
                seen[cut.modules] = suffix.eval()(prefix(x))
            torch.testing.assert_close(seen[cut.modules], expected, rtol=0, atol=0)
    assert len(seen) == len({find_cut(backbone, k, unit).modules for k in range(RANGES[unit] + 1)})


@pytest.mark.parametrize("unit", RANGES)
def test_ranges_of_resnet50(resnet50: tuple[Backbone, nn.Module], unit: str) -> None:
    backbone, _ = resnet50
    assert len(boundaries(backbone, unit)) - 1 == RANGES[unit]
    assert find_cut(backbone, "all", unit) == find_cut(backbone, RANGES[unit], unit)
    assert find_cut(backbone, 0, unit).frozen == frozenset()
    everything = {name for name, _ in backbone.model.named_parameters()}
    assert find_cut(backbone, "all", unit).frozen == everything
    for k in (-1, RANGES[unit] + 1):
        with pytest.raises(Refused, match=rf"freeze_depth={k} is out of range .* 0..{RANGES[unit]}, or all"):
            find_cut(backbone, k, unit)


@pytest.mark.parametrize("k", [0, 1, 2, 33, 99, 100, 101, 158, 159])
def test_tensor_k_is_what_list_parameters_k_freezes(resnet50: tuple[Backbone, nn.Module], k: int) -> None:
    backbone, theirs = resnet50
    split_at(backbone, find_cut(backbone, k, "tensor"))
    theirs = copy.deepcopy(theirs)
    for parameter in list(theirs.parameters())[:k]:
        parameter.requires_grad_(False)
    assert [p.requires_grad for p in backbone.model.parameters()] == [p.requires_grad for p in theirs.parameters()]


def test_first_100_tensors_end_inside_layer3_2_and_are_cut_before_it(resnet50: tuple[Backbone, nn.Module]) -> None:
    backbone, _ = resnet50
    cut = find_cut(backbone, 100, "tensor")
    assert list(backbone.units)[cut.modules] == "layer3.2"
    inside = {name for name in cut.frozen if name.startswith("layer3.2")}
    assert "layer3.2.conv3.weight" in inside
    assert "layer3.2.bn3.weight" not in cut.frozen
    assert {"layer3.2.bn1", "layer3.2.bn2"} <= cut.pinned
    assert "layer3.2.bn3" not in cut.pinned


def test_units_agree_where_they_meet(resnet50: tuple[Backbone, nn.Module]) -> None:
    backbone, _ = resnet50
    for unit, k, other, same in (("stage", 3, "block", 8), ("block", 11, "layer", 34), ("layer", 53, "tensor", 159)):
        assert find_cut(backbone, k, unit).frozen == find_cut(backbone, same, other).frozen


def test_training_mode_leaves_prefix_and_pinned_batchnorms_in_eval(resnet50: tuple[Backbone, nn.Module]) -> None:
    backbone, _ = resnet50
    cut = find_cut(backbone, 100, "tensor")
    prefix, suffix = split_at(backbone, cut)
    nn.ModuleDict({"prefix": prefix, "suffix": suffix}).train()
    norms = {n: m for n, m in backbone.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {name for name, norm in norms.items() if not norm.training} == cut.pinned
    assert not any(module.training for module in prefix.modules())


def test_frozen_batchnorm_policies(resnet50: tuple[Backbone, nn.Module]) -> None:
    backbone, _ = resnet50
    cuts = {policy: find_cut(backbone, 5, "block", policy) for policy in ("eval", "stats", "train")}
    assert cuts["eval"].modules == 5
    assert cuts["stats"].modules == cuts["train"].modules == 0
    assert cuts["stats"].pinned == cuts["train"].pinned == frozenset()
    assert cuts["stats"].frozen == cuts["eval"].frozen
    freed = cuts["eval"].frozen - cuts["train"].frozen
    assert freed == {f"{norm}.{part}" for norm in cuts["eval"].pinned for part in ("weight", "bias")}


def test_a_cut_names_what_its_prefix_holds(resnet50: tuple[Backbone, nn.Module]) -> None:
    backbone, _ = resnet50
    for k, unit in ((0, "block"), (5, "block"), ("all", "block"), (100, "tensor")):
        cut = find_cut(backbone, k, unit)
        whole = {name for name in backbone.model.state_dict() if not name.endswith("num_batches_tracked")}
        units = list(backbone.units)[: cut.modules]
        before = {name for name in whole if not name.startswith("layer") and "stem" in units}
        before |= {name for name in whole if ".".join(name.split(".")[:2]) in units}
        assert {name for name in cut.prefix if not name.endswith("num_batches_tracked")} == before
        assert cut.prefix <= cut.frozen_part
    assert find_cut(backbone, "all", "block").modules == len(backbone.units) + 1, "the pooling is one of them"
