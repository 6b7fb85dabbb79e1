"""An export works without this package, and says what our own predict says."""

import inspect
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import load_file

from finetune import cli
from finetune.errors import Refused
from finetune.export.classifier import Classifier, load_classifier
from finetune.export.predict import probabilities_of
from finetune.export.write import CARD, CLASSES, INPUT, ONNX, PT2, _onnx, export
from finetune.network.checkpoint import InputSpec
from finetune.records.layout import CHECKPOINT, EXPORTED
from tests.models import draw, random_weights, trial

CASES = {
    "resnet18": ["model=resnet18", "model.freeze_depth=7", "data.resize=crop", "data.interpolation=bicubic"],
    "deep_head": ["model=narrow_resnet50", "model.head.hidden=[16]", "model.head.dropout=0.2", "data.resize=pad"],
    "cnn5": ["model=cnn5", "model.head.activation=gelu", "model.head.hidden=[8]"],
}
FILES = {CARD, CLASSES, EXPORTED, ONNX, PT2}


@pytest.fixture(
    scope="module", params=["cnn5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "deep_head"))]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, Path]:
    """Its name; the folders of the images, of the trial and of its export."""
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        pytest.skip("this PyTorch writes no ONNX of a batch of any size")
    folder = tmp_path_factory.mktemp(request.param)
    images = draw(folder / "images")
    weights = [f"model.weights={random_weights('resnet18', folder / 'w.pth')}"] if request.param == "resnet18" else []
    trial(folder / "trial", f"data.root={images}", *CASES[request.param], *weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["finetune", "export", str(folder / "trial"), str(folder / "out")])
        assert cli.main() == 0
    return request.param, images, folder / "trial", folder / "out"


def rows(classifier: Classifier, files: list[Path]) -> NDArray[np.float32]:
    found = [row for _, row in probabilities_of(classifier, files, batch_size=5, device="cpu")]
    return np.stack([row for row in found if not isinstance(row, str)])


def test_a_folder_of_five_files_without_a_path_of_this_machine(case: tuple[str, Path, Path, Path]) -> None:
    _, _, _, out = case
    assert {path.name for path in out.iterdir()} == FILES
    here = str(Path(torch.__file__).parent.parent).encode()
    assert here not in (out / ONNX).read_bytes()
    for name in zipfile.ZipFile(out / PT2).namelist():
        assert here not in zipfile.ZipFile(out / PT2).read(name), name


def test_onnx_pt2_and_the_exported_weights_say_what_the_checkpoint_says(case: tuple[str, Path, Path, Path]) -> None:
    """On normalised images of any batch size, and end to end."""
    _, images, folder, out = case
    ours = load_classifier(folder / CHECKPOINT)
    files = sorted(images.rglob("*.png"))
    expected = rows(ours, files)
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-6)
    assert expected.std(axis=0).min() > 1e-4  # it looks at the images
    np.testing.assert_allclose(rows(load_classifier(out / EXPORTED), files), expected, atol=1e-6)
    session = onnxruntime.InferenceSession(out / ONNX, providers=["CPUExecutionProvider"])
    program = torch.export.load(out / PT2).module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            logits = ours.network(x)
            assert torch.allclose(program(x), logits.softmax(1), atol=1e-4)
        (probabilities,) = session.run(None, {INPUT: x.numpy()})
        assert np.abs(np.asarray(probabilities) - logits.softmax(1).numpy()).max() < 1e-4


@pytest.mark.slow
def test_the_code_in_the_model_card_runs_without_this_package_and_agrees(
    case: tuple[str, Path, Path, Path], tmp_path: Path
) -> None:
    """`python -I`, in the exported folder, where importing finetune fails: ONNX Runtime, PyTorch and torchvision."""
    name, images, folder, out = case
    photo = images / "val" / "green" / "2.png"
    blocks = re.findall(r"```python\n(.*?)```", (out / CARD).read_text(), re.S)
    assert len(blocks) == (4 if name == "resnet18" else 3)
    code = "\n".join(blocks).replace("photo.jpg", str(photo))
    blocked = "import sys; sys.modules['finetune'] = None\n"
    script = tmp_path / "use.py"
    script.write_text(f"{blocked}{code}\nassert not any(n.startswith('finetune.') for n in sys.modules)\n")
    ran = subprocess.run([sys.executable, "-I", script], cwd=out, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = [line.split() for line in ran.stdout.splitlines()]
    assert len(said) == len(blocks) - 1
    classifier = load_classifier(folder / CHECKPOINT)
    (row,) = rows(classifier, [photo])
    for label, probability in said:
        assert label == classifier.classes[row.argmax()]
        assert float(probability) == pytest.approx(row.max(), abs=1e-4)


def test_a_linear_head_loads_into_torchvisions_own_resnet_with_equal_logits(
    case: tuple[str, Path, Path, Path],
) -> None:
    name, _, folder, out = case
    if name != "resnet18":
        assert "torchvision has no network" in (out / CARD).read_text()
        return
    network = torchvision.models.resnet18(num_classes=3).eval()
    network.load_state_dict(load_file(out / EXPORTED), strict=True)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network(x), load_classifier(folder / CHECKPOINT).network(x))


def test_the_files_say_what_goes_in_and_comes_out(case: tuple[str, Path, Path, Path]) -> None:
    name, _, folder, out = case
    ours = load_classifier(folder / CHECKPOINT)
    assert json.loads((out / CLASSES).read_text()) == ["blue", "green", "red"] == list(ours.classes)
    model = onnx.load(out / ONNX)
    onnx.checker.check_model(model)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == list(ours.classes)
    assert InputSpec.parse(about["preprocessing"]) == ours.preprocessing
    assert ours.preprocessing.resize == {"resnet18": "crop", "deep_head": "pad", "cnn5": "squash"}[name]
    extra = {"preprocessing": "", "classes": ""}
    torch.export.load(out / PT2, extra_files=extra)
    assert InputSpec.parse(extra["preprocessing"]) == ours.preprocessing
    (given,), (answer,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in io.type.tensor_type.shape.dim] for io in (given, answer)]
    assert (given.name, answer.name, shapes) == ("pixels", "probabilities", [["batch", 3, 32, 32], ["batch", 3]])
    card = (out / CARD).read_text()
    for told in (
        "float32, N × 3 × 32 × 32",
        "0. blue\n1. green\n2. red",
        "Validation accuracy (top-1)",
        "- split: `",
    ):
        assert told in card
    assert "seed 0, trained on cpu" in card


def test_a_lone_checkpoint_and_a_used_folder(tmp_path: Path, fast: list[str]) -> None:
    trial(tmp_path / "t", *fast)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((tmp_path / "t" / CHECKPOINT).read_bytes())
    classifier = load_classifier(alone)
    assert classifier.preprocessing.size == 32
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(Refused, match=r"full exists already; give the path of a new folder"):
        export(classifier, tmp_path / "full", "")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data[:200], r"cannot be read .*; give a best.safetensors or an exported folder"),
        (lambda data: b"not a model", r"cannot be read"),
        (lambda data: data.replace(b"preprocessing", b"preprocessinG"), r"is not a model of finetune; give a best"),
        (lambda data: data.replace(b"fc.bias", b"fc.baas"), r"is damaged or of another version \(its checksum differs"),
    ],
)
def test_damaged_files_are_refused(change: object, why: str, tmp_path: Path) -> None:
    from finetune.config import ModelConfig
    from finetune.export.classifier import exported_bytes
    from finetune.network.backbone import build_backbone
    from finetune.network.head import build_head

    pixels = InputSpec(32, "squash", "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    model = ModelConfig(backbone="cnn5", weights="none", freeze_depth=0)
    whole = exported_bytes(Classifier(build_backbone("cnn5"), build_head(256, [], 2), model, ("a", "b"), pixels))
    (tmp_path / EXPORTED).write_bytes(whole)
    assert load_classifier(tmp_path / EXPORTED).classes == ("a", "b")
    assert callable(change)
    (tmp_path / EXPORTED).write_bytes(change(whole))
    with pytest.raises(Refused, match=why):
        load_classifier(tmp_path / EXPORTED)


def test_a_pytorch_that_writes_no_onnx_is_told_which_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, dynamo=False: None)
    with pytest.raises(Refused, match=r"export writes ONNX with torch 2\.6 or newer, and this is"):
        _onnx(torch.nn.Identity(), None)  # type: ignore[arg-type]
