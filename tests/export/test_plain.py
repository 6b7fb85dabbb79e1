"""An export's weights in the network of its own library: the code of its card makes it, with equal logits."""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from finetune.config import ModelConfig
from finetune.errors import Refused
from finetune.export import write
from finetune.export.card import model_card
from finetune.export.classifier import Classifier, exported_bytes, load_classifier
from finetune.export.plain import library_of, plain_code
from finetune.export.write import INPUT, ONNX, PT2, export
from finetune.network.backbone import build_backbone
from finetune.network.checkpoint import InputSpec
from finetune.network.head import build_head
from finetune.network.weights import load_state
from finetune.records.layout import EXPORTED
from tests.network.test_backbone import scrambled

SIZES = {
    "mobilenet_v3_small": 32,
    "timm/test_vit3": 160,
    "timm/test_convnext": 32,
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet1_0": 32,
    "regnet_y_400mf": 32,
    "shufflenet_v2_x1_0": 32,
    "squeezenet1_0": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 32,
    "vit_b_16": 32,
    "timm/convnext_atto": 32,
    "timm/eva02_tiny_patch14_224": 56,
    "timm/hiera_tiny_224": 224,
    "timm/levit_128s": 224,
    "timm/pvt_v2_b0": 64,
    "timm/resnetv2_50": 32,
    "timm/vit_tiny_patch16_224": 64,
}
"""One network of each family, and a size that it takes."""
LOADED = [name for name in SIZES if name != "maxvit_t"]
"""Those whose weights are loaded; that one takes longest."""
WRITTEN = [name for name in SIZES if name not in {"vit_b_16", "timm/convnext_atto"}]
"""Those that are written as programs. These two and others were, once, with the same test: docs/log.md names them."""


SAMPLE = ("mobilenet_v3_small", "timm/test_vit3", "timm/levit_128s")
"""Those that are written in every run of the slow tests, for each takes up to a minute of a core."""


def families(names: list[str], marks: Callable[[str], Sequence[Any]]) -> list[Any]:
    """Networks as parameters of a test."""
    no_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
    return [pytest.param(name, marks=[*marks(name), *([no_timm] if "timm/" in name else [])]) for name in names]


def classifier_of(name: str, size: int, hidden: tuple[int, ...] = ()) -> Classifier:
    """A network whose values are drawn, statistics of BatchNorms too, with three classes."""
    backbone = build_backbone(name, size)
    load_state(backbone, scrambled(backbone))
    head = build_head(backbone.width, hidden, 3)
    pixels = InputSpec(size, "squash", "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Classifier(backbone, head, ModelConfig(backbone=name), ("a", "b", "c"), pixels)


def made(code: str, file: Path) -> nn.Module:
    """What the lines of a card make of an exported file."""
    names = {"torch": torch, "load_file": lambda name: load_file(file)}
    exec(f"import torchvision\n{'import timm' if 'timm.' in code else ''}\n{code}", names)
    network = names["network"]
    assert isinstance(network, nn.Module)
    return network.eval()


@pytest.mark.parametrize("name", families(LOADED, lambda name: [] if name in SAMPLE[:2] else [pytest.mark.networks]))
def test_the_exported_weights_load_into_the_librarys_own_network_with_equal_logits(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    ours = classifier_of(name, size)
    (tmp_path / EXPORTED).write_bytes(exported_bytes(ours))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = ours.network(x)
        assert expected.std() > 0
        again = load_classifier(tmp_path / EXPORTED).network(x)
        logits = made(plain_code(ours), tmp_path / EXPORTED)(x)
    rounded = name == "timm/test_vit3" and torch.__version__.startswith("2.4.")  # attention that pools
    assert (again - expected).abs().max() <= (1e-7 if rounded else 0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "name", families(WRITTEN, lambda name: [pytest.mark.slow if name in SAMPLE else pytest.mark.networks])
)
def test_the_programs_of_an_export_say_what_its_network_says(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And nobody is warned of anything meanwhile."""
    size = SIZES[name]
    ours = classifier_of(name, size)
    export(ours, tmp_path / "out", "")
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    session = onnxruntime.InferenceSession(tmp_path / "out" / ONNX, providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "out" / PT2).module()
    for batch in (1, 3):
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = ours.network(x).softmax(1)
            torch.testing.assert_close(program(x), expected, rtol=0, atol=1e-4)
        (probabilities,) = session.run(None, {INPUT: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(probabilities), expected, rtol=0, atol=1e-4)


def test_the_code_is_short_where_the_library_builds_the_network_with_its_classes() -> None:
    assert plain_code(classifier_of("mobilenet_v3_small", 32)).startswith(
        "network = torchvision.models.mobilenet_v3_small(num_classes=3)\n"
    )


def test_a_head_with_hidden_layers_stands_in_the_librarys_place(tmp_path: Path) -> None:
    ours = classifier_of("mobilenet_v3_small", 32, hidden=(4,))
    code = plain_code(ours)
    assert "network.classifier[3] = torch.nn.Sequential(torch.nn.Linear(in_features=1024, out_features=4" in code
    (tmp_path / EXPORTED).write_bytes(exported_bytes(ours))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(made(code, tmp_path / EXPORTED)(x), ours.network(x))


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_the_card_of_a_network_of_timm_has_timms_code() -> None:
    ours = classifier_of("timm/test_vit3", 160)
    pixels = {**vars(ours.preprocessing)}
    card = model_card(ours.model, ours.classes, pixels, library_of("timm/test_vit3"), plain_code(ours), None, "", [])
    assert "the weights by timm's names;" in card
    assert "With timm alone, to train on or to take features from:" in card
    assert "import timm\nimport torch\nfrom safetensors.torch import load_file\n" in card
    assert 'network = timm.create_model("test_vit3", num_classes=3)' in card


def test_a_network_of_nobodys_has_no_such_code() -> None:
    assert library_of("narrow_resnet50") == plain_code(classifier_of("narrow_resnet50", 32)) == ""


def test_a_network_that_pytorch_cannot_write_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(network: nn.Module, classifier: Classifier) -> bytes:
        raise RuntimeError("step 1 of 3 failed") from ValueError("no such operator\nand a long trace")

    monkeypatch.setattr(write, "_onnx", fail)
    with pytest.raises(
        Refused,
        match=r"^cnn5 cannot be written as ONNX by torch \S+ \(no such operator\); use it with `finetune predict`",
    ):
        export(classifier_of("cnn5", 32), tmp_path / "out", "")
    assert not (tmp_path / "out").exists()
