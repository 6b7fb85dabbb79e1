import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from finetune.config import BACKBONES
from finetune.errors import Refused
from finetune.network.backbone import Backbone, build_backbone
from finetune.network.own import OWN, shapes_file
from finetune.network.weights import IMAGENET_MEAN, load_state, read_weights

RESNETS = {"resnet18": (9, 512), "resnet34": (17, 512), "resnet50": (17, 2048), "resnet101": (34, 2048)}


def scrambled(backbone: Backbone, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state with nothing at its initial value, BatchNorm's statistics included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value * 1.1 + (value.ndim == 1) * 0.1 * torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in backbone.model.state_dict().items()
    }


@pytest.mark.parametrize("name", RESNETS)
def test_units_are_the_stem_and_the_blocks_in_forward_order(name: str) -> None:
    backbone = build_backbone(name)
    assert (len(backbone.units), backbone.width) == RESNETS[name]
    names = list(backbone.units)
    assert names[:2] == ["stem", "layer1.0"]
    assert names == ["stem", *sorted(names[1:], key=lambda n: [int(d) for d in n.removeprefix("layer").split(".")])]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_units_then_pool_then_classifier_equal_torchvision(name: str) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    ours = build_backbone(name)
    load_state(ours, {n: v for n, v in theirs.state_dict().items() if not n.startswith("fc.")})
    x = torch.randn(2, 3, 64, 64)
    y = x
    with torch.no_grad():
        for unit in ours.units.values():
            y = unit.eval()(y)
        torch.testing.assert_close(theirs.fc(ours.pool(y)), theirs(x), rtol=0, atol=0)


def test_narrow_resnet50_has_the_depth_of_resnet50_at_a_quarter_of_the_width() -> None:
    narrow, wide = build_backbone("narrow_resnet50"), build_backbone("resnet50")
    assert list(narrow.units) == list(wide.units)
    assert narrow.width * 4 == wide.width
    shapes = zip(narrow.model.parameters(), wide.model.parameters(), strict=True)
    assert all(small.shape[0] * 4 == large.shape[0] for small, large in shapes)
    assert 1.4e6 < sum(p.numel() for p in narrow.model.parameters()) < 1.6e6


def test_cnn5_is_five_convolutions_that_are_its_units() -> None:
    backbone = build_backbone("cnn5")
    assert [sum(p.ndim == 4 for p in unit.parameters()) for unit in backbone.units.values()] == [1] * 5


@pytest.mark.parametrize("name", BACKBONES)
def test_pool_gives_features_of_the_stated_width_at_odd_sizes(name: str) -> None:
    if name == "resnet152":
        pytest.skip("as resnet101, only slower")
    backbone = build_backbone(name)
    x = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        for unit in backbone.units.values():
            x = unit.eval()(x)
        assert backbone.pool(x).shape == (2, backbone.width)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_units_hold_every_parameter_and_buffer_once_and_in_order(name: str) -> None:
    """Freeze depths count along `parameters()`, so a unit that comes later there must run later too."""
    with torch.device("meta"):
        backbone = build_backbone(name)
    units = list(backbone.units.values())
    for of in (torch.nn.Module.parameters, torch.nn.Module.buffers):
        assert [id(v) for unit in units for v in of(unit)] == [id(v) for v in of(backbone.model)]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_weight_file_is_read_whole_whether_or_not_it_has_a_classifier(tmp_path: Path, suffix: str) -> None:
    backbone = build_backbone("narrow_resnet50")
    state = scrambled(backbone)
    path = tmp_path / f"w{suffix}"
    whole = {**state, "fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)}
    safetensors.torch.save_file(whole, path) if suffix == ".safetensors" else torch.save(whole, path)
    weights = read_weights(backbone, str(path))
    load_state(backbone, weights.state)
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())


def test_a_digest_changes_with_one_weight_and_not_with_order_or_file(tmp_path: Path) -> None:
    backbone = build_backbone("cnn5")
    state = scrambled(backbone)
    flipped = {name: value.clone() for name, value in state.items()}
    flipped["conv3.conv.weight"].view(-1)[17] += 1e-6
    digests = []
    for i, (content, suffix) in enumerate([(state, "pth"), (dict(reversed(state.items())), "pth"), (flipped, "pth")]):
        torch.save(content, tmp_path / f"{i}.{suffix}")
        weights = read_weights(backbone, str(tmp_path / f"{i}.{suffix}"))
        digests.append([weights.digest, weights.digest_of(["conv3.conv.weight"]), weights.digest_of(["conv1.bn.bias"])])
    assert digests[0] == digests[1]
    assert [a == b for a, b in zip(digests[0], digests[2], strict=True)] == [False, False, True]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_some_tensors_of_known_weights_are_read_without_the_others(tmp_path: Path, suffix: str) -> None:
    backbone = build_backbone("cnn5")
    state, path = scrambled(backbone), tmp_path / f"w.{suffix}"
    safetensors.torch.save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    whole = read_weights(backbone, str(path))
    part = read_weights(backbone, str(path), whole.digests, {"conv2.conv.weight"})
    assert (part.digest, list(part.state)) == (whole.digest, ["conv2.conv.weight"])
    with torch.device("meta"):
        empty = build_backbone("cnn5")
    load_state(empty, part.state)
    assert torch.equal(empty.model.get_parameter("conv2.conv.weight"), state["conv2.conv.weight"])
    assert empty.model.get_parameter("conv1.conv.weight").is_meta
    assert empty.model.get_buffer("conv1.bn.num_batches_tracked") == 0


def test_no_weights_are_an_empty_state() -> None:
    weights = read_weights(build_backbone("resnet18"), "none")
    assert (weights.state, weights.digest, weights.mean) == ({}, "none", IMAGENET_MEAN)


@pytest.mark.parametrize("name", [name for name in OWN if shapes_file(name)])
def test_shipped_weights_fill_a_network_and_carry_their_normalisation(name: str) -> None:
    backbone = build_backbone(name)
    weights = read_weights(backbone, "SHAPES60_V1")
    assert (weights.mean, weights.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert read_weights(backbone, "pretrained").digests == weights.digests
    assert set(weights.state) == set(backbone.model.state_dict())


def test_a_class_token_and_a_table_of_positions_belong_to_the_unit_before() -> None:
    parameters = build_backbone("vit_narrow").unit_parameters
    assert parameters["conv_proj.6"] == [
        *("class_token", "conv_proj.6.weight", "conv_proj.6.bias", "encoder.pos_embedding"),
    ]
    assert len(parameters) == 13


def test_a_vits_positions_follow_the_size_of_the_images() -> None:
    backbone = build_backbone("vit_narrow", 96)
    assert read_weights(backbone, "SHAPES60_V1").state["encoder.pos_embedding"].shape == (1, 1 + 12 * 12, 96)
    with pytest.raises(Refused, match=r"cannot take images of 60 x 60 .*; set data.size=64, its own"):
        build_backbone("vit_narrow", 60)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    backbone = build_backbone("narrow_resnet50")
    state = scrambled(backbone)
    cases = {
        r"lacks conv1\.weight": {n: v for n, v in state.items() if n != "conv1.weight"},
        r"has unknown layer3\.6\.conv1\.weight": {**state, "layer3.6.conv1.weight": torch.zeros(1)},
        r"another shape for conv1\.weight": {**state, "conv1.weight": torch.zeros(1, 3, 7, 7)},
        r"NaN or infinite values in bn1\.weight": {**state, "bn1.weight": torch.full((16,), torch.nan)},
    }
    for message, wrong in cases.items():
        torch.save(wrong, tmp_path / "w.pth")
        with pytest.raises(Refused, match=message):
            read_weights(backbone, str(tmp_path / "w.pth"))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))


def test_a_file_that_carries_code_is_refused_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Bomb()}, "bomb.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "raw.pth"):
        with pytest.raises(Refused, match=f"{name} (holds more than tensors|cannot be read)"):
            read_weights(build_backbone("narrow_resnet50"), name)
    assert not Path("ran").exists()


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    backbone = build_backbone("narrow_resnet50")
    with pytest.raises(Refused, match="there is no such file"):
        read_weights(backbone, str(tmp_path / "nope.pth"))
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x08\0\0")
        with pytest.raises(Refused, match=rf"{name} (cannot be read|holds more than tensors)"):
            read_weights(backbone, str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(Refused, match="not a state_dict"):
        read_weights(backbone, str(tmp_path / "list.pth"))


def test_an_unknown_weight_name_gets_the_nearest() -> None:
    with pytest.raises(Refused, match="did you mean IMAGENET1K_V2"):
        read_weights(build_backbone("resnet50"), "IMAGNET1K_V2")
    with pytest.raises(Refused, match="cnn5 has no weights of that name"):
        read_weights(build_backbone("cnn5"), "IMAGENET1K_V1")


def test_a_failed_download_is_refused_with_the_place_to_put_the_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
    with pytest.raises(Refused, match=rf"could not be downloaded \(no network\); put the file at {cache}/torch/hub"):
        read_weights(build_backbone("resnet18"), "IMAGENET1K_V1")


def test_a_downloaded_file_is_used_with_its_own_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone("resnet18")
    state = {**scrambled(backbone), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, dst, *rest, **more: torch.save(state, dst))
    monkeypatch.setattr("finetune.network.weights.refuse_other_bytes", lambda path, prefix: None)
    weights = read_weights(backbone, "ResNet18_Weights.IMAGENET1K_V1")
    assert torch.equal(weights.state["conv1.weight"], state["conv1.weight"])
    assert weights.mean == IMAGENET_MEAN


def _no_network(*args: object, **kwargs: object) -> None:
    raise OSError("no network")
