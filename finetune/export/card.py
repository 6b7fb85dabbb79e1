"""The model card of an export: what a stranger must know to use the model and to judge it. Imports no torch."""

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from finetune.config import ModelConfig
from finetune.data.decode import PAD_COLOR
from finetune.records.result import Result

_RESIZED = {
    "squash": "image.resize({size}, {method})",
    "crop": "ImageOps.fit(image, {size}, {method})",
    "pad": "ImageOps.pad(image, {size}, {method}, color={color})",
}
_IN_WORDS = {
    "squash": "stretched to {n} × {n} whatever its aspect ratio",
    "crop": "cropped to its middle square and resized to {n} × {n}",
    "pad": "resized to fit into {n} × {n}, the rest filled with the grey {color}",
}
_CARD = """# {title}

Tells {count} classes of images apart. {network}, fine-tuned with finetune.

| file | what it is |
|---|---|
| `model.onnx`, `model.pt2` | the whole network with its softmax layer, for ONNX Runtime and for `torch.export.load` |
| `model.safetensors` | the weights by torchvision's names; they give logits, before the softmax |
| `classes.json` | the class names in the order of the outputs |

## Input and output

An image is turned upright by its EXIF orientation, made RGB (transparency over white), {resized} with {interpolation}
interpolation, divided by 255 and normalised per channel with mean {mean} and standard deviation {std}.
The code below is for ordinary photographs: it neither lays transparency over white nor scales 16-bit pixels.

- **Input** `pixels`: float32, N × 3 × {n} × {n}, any N, channels in the order red, green, blue.
- **Output** `probabilities`: float32, N × {count}, softmax, each row sums to 1.

```python
import json

import numpy as np
from PIL import Image, ImageOps

MEAN = np.array({mean}, dtype=np.float32)
STD = np.array({std}, dtype=np.float32)
classes = json.load(open("classes.json", encoding="utf-8"))


def pixels(path):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image = {code}
    x = (np.asarray(image, dtype=np.float32) / 255 - MEAN) / STD
    return x.transpose(2, 0, 1)[None].copy()
```

With ONNX Runtime:

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(probabilities,) = session.run(None, {{"pixels": pixels("photo.jpg")}})
print(classes[probabilities[0].argmax()], probabilities[0].max())
```

With PyTorch:

```python
import torch

network = torch.export.load("model.pt2").module()
probabilities = network(torch.from_numpy(pixels("photo.jpg")))
print(classes[probabilities[0].argmax()], probabilities[0].max().item())
```

{torchvision}

With finetune: `finetune predict FOLDER photo.jpg`, where FOLDER is this one.

## Classes

{classes}

## How good it is

{metrics}

## Where it comes from

{provenance}
"""
_TORCHVISION = """With torchvision alone, to train on or to take features from:

```python
import torch
import torchvision
from safetensors.torch import load_file

network = torchvision.models.{backbone}({arguments}){head}
network.load_state_dict(load_file("model.safetensors"))
probabilities = network.eval()(torch.from_numpy(pixels("photo.jpg"))).softmax(dim=1)
print(classes[probabilities[0].argmax()], probabilities[0].max().item())
```"""


def model_card(
    model: ModelConfig,
    classes: Sequence[str],
    pixels: dict[str, Any],
    torchvision: str,
    result: Result | None,
    chosen: str,
    command: Sequence[str],
) -> str:
    """The text of an export's README.md.

    Args:
        model: The network's settings.
        classes: Names in label order.
        pixels: `size`, `resize`, `interpolation`, `mean`, `std`.
        torchvision: `torchvision_code`'s section; empty where torchvision has no such network.
        result: The record of the trial; None for a checkpoint that lies alone.
        chosen: What the sweep that chose the settings says of them; empty without one.
        command: The overrides that repeat the trial.
    """
    n, resize, interpolation = pixels["size"], pixels["resize"], pixels["interpolation"]
    method = f"Image.Resampling.{interpolation.upper()}"
    code = _RESIZED[resize].format(size=(n, n), method=method, color=PAD_COLOR)
    return _CARD.format(
        title=f"{model.backbone}: {', '.join(classes[:5])}{' …' if len(classes) > 5 else ''}",
        count=len(classes),
        network=_network(model),
        n=n,
        resized=_IN_WORDS[resize].format(n=n, color=PAD_COLOR),
        interpolation=interpolation,
        code=code,
        mean=list(pixels["mean"]),
        std=list(pixels["std"]),
        torchvision=torchvision or f"torchvision has no network of its own like {model.backbone}.",
        classes="\n".join(f"{label}. {name}" for label, name in enumerate(classes)),
        metrics=_metrics(result, chosen),
        provenance=_provenance(model, result, command),
    )


def torchvision_code(backbone: str, classifier: str, head: Sequence[str], classes: int) -> str:
    """The section that loads the weights into torchvision's own network.

    Args:
        backbone: torchvision's name.
        classifier: The attribute that the head replaces.
        head: The layers as Python code.
        classes: Outputs.
    """
    linear = [layer for layer in head if "Linear" in layer]
    if len(linear) == 1 and classifier == "fc":
        return _TORCHVISION.format(backbone=backbone, arguments=f"num_classes={classes}", head="")
    layers = linear[0] if len(linear) == 1 else f"torch.nn.Sequential({', '.join(head)})"
    return _TORCHVISION.format(backbone=backbone, arguments="", head=f"\nnetwork.{classifier} = {layers}")


def _network(model: ModelConfig) -> str:
    hidden = ", ".join(map(str, model.head.hidden))
    head = f"a head with hidden layers of {hidden}" if hidden else "a linear head"
    start = "random weights" if model.weights == "none" else f"the weights {PurePath(model.weights).name}"
    depth = f"{model.freeze_depth} ({model.freeze_unit}s)"
    return f"A {model.backbone} with {head}, started from {start} and frozen to depth {depth}"


def _metrics(result: Result | None, chosen: str) -> str:
    if result is None:
        return "Not known: the checkpoint lay without its record. `finetune test FOLDER IMAGES` measures it."
    lines = []
    if result.val_acc_best is None:
        lines += ["Trained on the validation images too, so it has no validation accuracy of its own."]
    else:
        epochs = f"epoch {(result.best_epoch or 0) + 1} of {len(result.history)}"
        lines += [
            f"Validation accuracy (top-1) {result.val_acc_best:.3f}, after {epochs}. It chose the epoch, and in a "
            "sweep the settings, so expect a little less on new images."
        ]
    if "test/acc" in result.last:
        lines += [f"Test accuracy (top-1) {result.last['test/acc']:.3f}, on images that chose nothing."]
    if chosen:
        lines += [f"The sweep that chose the settings: {chosen}"]
    return "\n\n".join(lines)


def _provenance(model: ModelConfig, result: Result | None, command: Sequence[str]) -> str:
    if result is None:
        return "Exported from a checkpoint without its record, so neither data nor versions are known."
    digests = [f"- {name}: `{digest}`" for name, digest in result.digests.items()]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return "\n".join(
        [
            f"Trial {result.key}, seed {result.seed}, trained on {result.device}. The same again:",
            "",
            f"```sh\npython -m finetune.train {shlex.join(command)}\n```",
            "",
            f"Versions: {versions}. SHA-256 digests of what went in:",
            "",
            *digests,
            "",
            f"The licence of {PurePath(model.weights).name} and of the training images applies to this model too."
            if model.weights != "none"
            else "The licence of the training images applies to this model too.",
        ]
    )
