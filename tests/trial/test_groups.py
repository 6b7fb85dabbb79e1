import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from timm import create_model
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from finetune.compose import compose_config
from finetune.config import OptimConfig
from finetune.network.backbone import build_backbone
from finetune.network.freeze import find_cut
from finetune.network.network import Network
from finetune.network.parts import split_at
from finetune.trial.groups import parameter_groups, rates
from finetune.trial.run import train
from finetune.trial.trainer import build_optimizer

TIMM = {
    "resnet18": True,
    "regnety_002": True,
    "repvgg_a0": True,
    "vit_tiny_patch16_224": True,
    "vit_small_patch14_dinov2": True,
    "convnext_atto": False,  # timm joins downsampling to the block behind it
    "swin_tiny_patch4_window7_224": False,
    "efficientnet_b0": False,  # timm gives the last convolution the head's rate
    "mobilenetv3_small_050": False,
    "densenet121": False,  # timm's layers are those within a dense block
}
"""One of each family, and whether timm's layers are its blocks."""


def cut_at(name: str, depth: int | str = 0) -> Network:
    backbone = build_backbone(name)
    prefix, suffix = split_at(backbone, find_cut(backbone, depth, "block"))
    return Network(prefix, suffix, nn.Sequential(nn.Linear(backbone.width, 10)))


def by_shape(groups: list[dict[str, object]], scale: str) -> list[tuple[object, ...]]:
    """The shape of each parameter with its factor and its weight decay, sorted: the names of two libraries differ."""
    return sorted(
        (tuple(parameter.shape), round(float(group.get(scale, 1)), 9), group["weight_decay"])  # type: ignore[arg-type]
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    )


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """The factor and the weight decay of each of a model's parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
        if parameter in names
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if equal else pytest.mark.slow) for name, equal in TIMM.items()]
)
def test_layer_decay_is_that_of_timm(name: str) -> None:
    """Equal where timm's layers are blocks; elsewhere no layer that timm has before another has the larger rate."""
    their_model = create_model(name, num_classes=10)
    theirs = by_name(their_model, param_groups_layer_decay(their_model, 0.05, layer_decay=0.7))

    backbone = build_backbone(f"timm/{name}")
    network = Network(*split_at(backbone, find_cut(backbone, 0, "block")), nn.Linear(backbone.width, 10))
    optim = OptimConfig(weight_decay=0.05, layer_decay=0.7, decay_norms=False)
    ours = by_name(backbone.model, parameter_groups(network, optim))

    assert len(ours) == len(theirs) - 2  # the classifier's
    assert {key: decay for key, (_, decay) in ours.items()} == {key: theirs[key][1] for key in ours}
    if TIMM[name]:
        assert {key: scale for key, (scale, _) in ours.items()} == pytest.approx({key: theirs[key][0] for key in ours})
    for (one, (scale, _)), (other, (larger, _)) in itertools.combinations(ours.items(), 2):
        if theirs[one][0] < 0.99 * theirs[other][0]:
            assert scale <= larger, (one, other)


def test_without_decay_of_norms_the_groups_are_those_of_timm() -> None:
    theirs = param_groups_weight_decay(create_model("resnet18", num_classes=10), 0.05)
    ours = parameter_groups(cut_at("resnet18"), OptimConfig(weight_decay=0.05, decay_norms=False))
    assert by_shape(ours, "lr_scale") == by_shape(theirs, "lr_scale")


def test_a_unit_has_the_same_rate_wherever_the_network_is_cut() -> None:
    optim = OptimConfig(lr=0.1, layer_decay=0.5, head_lr=10)
    deep = parameter_groups(cut_at("resnet18", 6), optim)
    shallow = parameter_groups(cut_at("resnet18", 0), optim)
    assert [group["lr"] for group in deep] == [group["lr"] for group in shallow][-len(deep) :]
    assert deep[-1]["lr"] == 1.0
    assert len(parameter_groups(cut_at("resnet18", "all"), optim)) == 1
    assert rates(cut_at("resnet18", 6), optim) == {"lr/head": 10, "lr/first": 0.125}


def test_one_rate_for_all_is_one_group_in_order() -> None:
    network = cut_at("resnet18", 6)
    (group,) = parameter_groups(network, OptimConfig())
    assert all(ours is theirs for ours, theirs in zip(group["params"], trained(network), strict=True))


def trained(network: Network) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_moves_the_head_by_its_own_rate(name: str) -> None:
    steps = []
    for head_lr in (1.0, 10.0):
        torch.manual_seed(0)
        network = Network(nn.Identity(), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2))
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer = build_optimizer(OptimConfig(name=name, lr=0.01, weight_decay=0, head_lr=head_lr), network)
        network(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        steps.append([(p - b).abs().max() for p, b in zip(network.parameters(), before, strict=True)])
    ratio = torch.stack(steps[1]) / torch.stack(steps[0])
    torch.testing.assert_close(ratio, torch.tensor([1.0, 1.0, 10.0, 10.0]))


def test_the_record_has_each_rate(small: list[str], tmp_path: Path) -> None:
    words = [*small, "model.freeze_depth=3", "optim.head_lr=10", "optim.layer_decay=0.5", "optim.warmup=0"]
    result = train(compose_config([*words, f"out={tmp_path / 'r'}"]), words)
    for epoch in result.history:
        assert epoch["lr/head"] == pytest.approx(10 * epoch["lr"])
        assert epoch["lr/first"] == pytest.approx(0.25 * epoch["lr"])
    assert result.history[0]["lr"] == pytest.approx(0.75 * 1e-3, rel=0.01)  # after two of six steps
    assert result.params["optim.head_lr"] == 10
