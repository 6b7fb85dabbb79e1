"""Networks of others, divided by one rule. Those called `test_…` are timm's own for tests, a few blocks each."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from finetune.compose import compose_config
from finetune.config import OptimConfig
from finetune.errors import Refused
from finetune.network.backbone import Backbone, backbone_shapes, build_backbone
from finetune.network.catalog import input_of
from finetune.network.freeze import find_cut
from finetune.network.head import build_head
from finetune.network.network import Network
from finetune.network.parts import SharedPrefix, split_at
from finetune.network.weights import load_state
from finetune.records.result import Result
from finetune.trial.run import train
from finetune.trial.trainer import build_module
from tests.models import plain_trainer
from tests.network.test_backbone import scrambled

pytest.importorskip("timm")

SMALL = {"timm/test_vit3": 64, "timm/test_convnext": 64, "timm/test_efficientnet": 64}
FAMILIES = {
    "convnext_tiny": 32,
    "vit_b_16": 32,
    "swin_t": 64,
    "efficientnet_b0": 64,
    "densenet121": 64,
    "shufflenet_v2_x1_0": 64,
    "regnet_y_400mf": 64,
    "timm/swin_tiny_patch4_window7_224": 224,
    "timm/pvt_v2_b0": 64,
    "timm/levit_128": 224,
}
"""One of each kind that is trained, and the size of its images, pixels."""
UNITS = {
    "narrow_resnet50": 17,
    "vit_narrow": 13,
    "convnext_narrow": 11,
    "cnn5": 5,
    "resnet50": 17,
    "resnext50_32x4d": 17,
    "wide_resnet50_2": 17,
    "efficientnet_b0": 18,
    "efficientnet_v2_s": 40,
    "convnext_tiny": 22,
    "vit_b_16": 13,
    "swin_t": 16,
    "swin_v2_t": 16,
    "maxvit_t": 13,
    "densenet121": 8,
    "inception_v3": 12,
    "googlenet": 10,
    "mobilenet_v2": 19,
    "mobilenet_v3_large": 18,
    "shufflenet_v2_x1_0": 17,
    "vgg16_bn": 15,
    "alexnet": 7,
    "mnasnet1_0": 18,
    "regnet_y_400mf": 17,
    "timm/resnet50": 17,
    "timm/resnetv2_50": 17,
    "timm/regnety_016": 28,
    "timm/nfnet_f0": 17,
    "timm/repvgg_a2": 22,
    "timm/fastvit_t8": 17,
    "timm/convnext_tiny": 22,
    "timm/convnextv2_tiny": 22,
    "timm/efficientnet_b0": 18,
    "timm/tf_efficientnetv2_s": 40,
    "timm/mobilenetv4_conv_small": 15,
    "timm/vit_small_patch16_224": 13,
    "timm/deit3_small_patch16_224": 13,
    "timm/vit_small_patch14_dinov2": 13,
    "timm/vit_small_patch14_reg4_dinov2": 13,
    "timm/vit_base_patch16_clip_224": 13,
    "timm/vit_base_patch16_siglip_224": 14,
    "timm/beit_base_patch16_224": 13,
    "timm/eva02_tiny_patch14_224": 13,
    "timm/swin_tiny_patch4_window7_224": 16,
    "timm/maxvit_tiny_tf_224": 13,
    "timm/caformer_s18": 22,
    "timm/hiera_tiny_224": 13,
    "timm/mixer_b16_224": 13,
    "timm/pvt_v2_b0": 12,
    "timm/levit_128": 15,
}
"""How many units each network has: blocks, with what lies before, between and after them."""


def whole(name: str, size: int) -> Backbone:
    """A network with nothing at its initial value, read into an empty one as a trial does."""
    state = scrambled(build_backbone(name, size))
    backbone = build_backbone(name, size, empty=True)
    load_state(backbone, state)
    backbone.model.eval()
    return backbone


def pixels(images: int, size: int) -> torch.Tensor:
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))


ROUNDED = {("timm/test_vit3", 11): 1e-7}
"""What torch 2.4 rounds otherwise: where attention pools the tokens within the frozen part, by network and cut."""


@pytest.mark.parametrize("name", SMALL)
def test_prefix_and_suffix_at_every_cut_are_the_networks_own_forward_pass(name: str) -> None:
    size = input_of(name).size
    backbone, x = whole(name, size), pixels(2, size)
    with torch.no_grad():
        expected = backbone.model(x)
        for k in range(len(backbone.units) + 1):
            prefix, suffix = split_at(backbone, find_cut(backbone, k, "block"))
            activations = prefix(x)
            before = activations.clone()
            off = float((suffix.eval()(activations) - expected).abs().max())
            assert off <= ROUNDED.get((name, k), 0.0), k
            assert torch.equal(activations, before), k


COARSE = {"timm/vit_small_patch14_dinov2": 56, "timm/vit_small_patch14_reg4_dinov2": 56}
"""Networks whose images are large, and the size that their values are compared at."""


@pytest.mark.networks
@pytest.mark.parametrize("name", UNITS)
def test_units_one_after_the_other_are_the_networks_own_forward_pass(name: str) -> None:
    """To the bit, and no unit writes to what it is given: so any of them can be the first after a cut."""
    size = COARSE.get(name, input_of(name).size)
    backbone, x = whole(name, size), pixels(2, size)
    with torch.no_grad():
        expected = backbone.model(x)
        assert expected.isfinite().all()
        assert not torch.equal(expected[0], expected[1]), "it looks at the image"
        for module in backbone.modules:
            before = x.clone()
            after = module(x)
            assert torch.equal(x, before)
            x = after
    assert torch.equal(x, expected)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.networks) for name in FAMILIES)])
def test_a_frozen_part_as_it_runs_is_the_networks_own_forward_pass(name: str) -> None:
    """With BatchNorm folded, which rounds."""
    size = {**SMALL, **FAMILIES}[name]
    backbone, x = whole(name, size), pixels(2, size)
    with torch.no_grad():
        expected = backbone.model(x)
        frozen, _ = split_at(backbone, find_cut(backbone, "all", "block"))
        folded = SharedPrefix.of(frozen)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def order_of_calls(backbone: Backbone) -> list[int]:
    """The units whose layers run, by number, layer after layer, in the network's own forward pass."""
    owners = {id(p): number for number, unit in enumerate(backbone.units.values()) for p in unit.parameters()}
    called = list[int]()

    def note(module: nn.Module, given: object) -> None:
        called.extend({owners[id(parameter)] for parameter in module.parameters(recurse=False)})

    for module in backbone.model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(note)
    size = input_of(backbone.name).size
    backbone.model(torch.empty(2, 3, size, size, device="meta"))
    return called


def holds_each_parameter_once(backbone: Backbone) -> bool:
    return sorted(backbone.parameter_names) == sorted(name for name, _ in backbone.model.named_parameters())


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.networks) for name in UNITS)])
def test_units_hold_each_parameter_once_in_forward_order(name: str) -> None:
    backbone = backbone_shapes(name)
    assert len(backbone.units) == UNITS.get(name, len(backbone.units))
    assert holds_each_parameter_once(backbone)
    assert all(any(p.ndim >= 2 for p in unit.parameters()) for unit in backbone.units.values())

    called = order_of_calls(backbone)
    assert called == sorted(called)
    assert set(called) == set(range(len(backbone.units)))


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.networks) for name in FAMILIES)])
@pytest.mark.parametrize("unit", ["block", "tensor"])
def test_what_is_frozen_is_bit_equal_after_a_training_step_and_the_rest_is_not(name: str, unit: str) -> None:
    size = {**SMALL, **FAMILIES}[name]
    backbone = whole(name, size)
    depth = (len(backbone.units) if unit == "block" else len(backbone.parameter_names)) // 2
    cut = find_cut(backbone, depth, unit)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}

    network = Network(*split_at(backbone, cut), build_head(backbone.width, [], 3))
    images = TensorDataset(pixels(4, size), torch.arange(4) % 3)
    plain_trainer(epochs=1).fit(
        build_module(network, OptimConfig(lr=0.01, warmup=0)), DataLoader(images, 4), DataLoader(images, 4)
    )

    changed = {key for key, value in backbone.model.state_dict().items() if not torch.equal(value, before[key])}
    assert cut.frozen
    assert cut.frozen <= cut.frozen_part
    assert not changed & cut.frozen_part
    assert set(backbone.parameter_names) - cut.frozen <= changed


def trial(out: Path, images: Path, weights: Path, *words: str) -> Result:
    given = [
        f"model.weights={weights}",
        f"data.root={images}",
        "data.batch_size=7",
        "trainer.epochs=2",
        "trainer.accelerator=cpu",
        f"cache.dir={out.parent / 'cache'}",
        f"out={out}",
        *words,
    ]
    return train(compose_config(given), given)


@pytest.mark.parametrize(
    "name", ["timm/test_vit3", *(pytest.param(name, marks=pytest.mark.networks) for name in [*SMALL, *FAMILIES][1:])]
)
def test_a_trial_is_the_same_from_stores(name: str, images: Path, tmp_path: Path) -> None:
    size = {**SMALL, **FAMILIES}[name]  # for which a network of fixed size gets its positions resampled
    state = scrambled(build_backbone(name))
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    words = [f"model.backbone={name}", f"data.size={size}", "model.freeze_depth=0.5", "model.freeze_unit=share"]
    off = trial(tmp_path / "off", images, tmp_path / "w.pth", *words, "cache.mode=off")
    on = trial(tmp_path / "on", images, tmp_path / "w.pth", *words, "cache.mode=on")
    assert (off.cache["train"], on.cache["train"]) == ("computed", "stored")
    assert off.history == on.history
    assert (on.freeze_depth, on.freeze_unit) == (0.5, "share")
    assert on.input["size"] == size
    assert on.input["mean"] == list(input_of(name).mean)
    assert any("'model' and the prefix 'module.'" in warning for warning in on.warnings)


def test_dropout_of_frozen_units_is_off_where_their_norms_follow_the_data() -> None:
    backbone = build_backbone("timm/test_efficientnet")
    for module in backbone.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    cut = find_cut(backbone, 3, "block", "stats")
    _, suffix = split_at(backbone, cut)
    suffix.train()
    training = {name for name, module in backbone.model.named_modules() if module.training}
    norms = {name for name, module in backbone.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert cut.modules == 0
    assert norms <= training
    assert not cut.pinned & training


@pytest.mark.slow
def test_a_network_whose_positions_are_a_table_of_its_own_is_refused_by_name() -> None:
    with pytest.raises(Refused, match=r"timm/vit_small_patch16_dinov3 cannot be cut: it computes with tables that are"):
        backbone_shapes("timm/vit_small_patch16_dinov3")
