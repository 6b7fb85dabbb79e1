import pytest
from torchvision.models import resnet50

from finetune.compose import compose_config
from finetune.config import trial_key
from finetune.errors import Refused
from finetune.network.catalog import default_size, input_of, torchvision_names, with_input
from tests.models import finetune


def test_networks_have_their_own_sizes() -> None:
    assert (default_size("resnet50"), default_size("inception_v3"), default_size("cnn5")) == (224, 299, 224)
    assert "fcn_resnet50" not in torchvision_names()


def test_what_is_left_to_the_network_is_what_its_weights_were_trained_with() -> None:
    config = with_input(compose_config(["model.backbone=inception_v3"]))
    assert (config.data.size, config.data.interpolation) == (299, "bilinear")
    assert with_input(compose_config(["model.backbone=inception_v3", "data.size=128"])).data.size == 128
    resnet = compose_config([])
    assert (resnet.data.size, resnet.data.interpolation) == (224, "bilinear")
    assert with_input(resnet) is resnet
    assert trial_key(resnet) == trial_key(compose_config(["data.size=224", "data.interpolation=bilinear"]))
    left = compose_config(["model.backbone=inception_v3"])
    assert trial_key(left) != trial_key(compose_config(["model.backbone=inception_v3", "data.size=224"]))


def test_networks_of_timm_have_its_weights_and_their_own_input() -> None:
    pytest.importorskip("timm")
    config = compose_config(["model.backbone=timm/vit_small_patch14_dinov2"])
    assert config.model.weights == "pretrained"
    config = with_input(config)
    assert (config.data.size, config.data.interpolation) == (518, "bicubic")
    assert input_of("timm/vit_base_patch16_clip_224.openai").mean != input_of("resnet50").mean
    with pytest.raises(Refused, match=r"has no such weights; .*lvd142m"):
        input_of("timm/vit_small_patch14_dinov2.lvd142")


def listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pattern: str) -> list[list[str]]:
    """The lines of `finetune backbones PATTERN`, as words."""
    assert finetune(monkeypatch, "backbones", pattern) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_networks_are_listed_with_what_a_person_chooses_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patterns = ("resnet5[0]", "narrow_")
    rows = {words[0]: words[1:] for pattern in patterns for words in listed(monkeypatch, capsys, pattern) if words}
    assert {"resnet50", "narrow_resnet50"} <= rows.keys()
    parameters = sum(value.numel() for name, value in resnet50().named_parameters() if not name.startswith("fc."))
    assert rows["resnet50"][0] == f"{parameters:,}"
    assert float(rows["resnet50"][1]) == pytest.approx(8.2, abs=0.05)  # torchvision gives 4.09 G multiply-adds, with fc
    assert rows["resnet50"][2:4] == ["17", "224"]
    assert rows["narrow_resnet50"][-1] == "yes", "its weights ship"


def test_many_networks_are_named_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(monkeypatch, capsys, "")
    assert ["vit_b_16"] in rows
    assert rows[-1] == [] or "networks;" in " ".join(rows[-2] + rows[-1])


def test_a_pattern_that_fits_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(monkeypatch, "backbones", "resnet5O") == 2
    assert "no network's name contains 'resnet5O'; `finetune backbones` lists them all" in " ".join(
        capsys.readouterr().err.split()
    )
