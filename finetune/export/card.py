"""The model card of an export: what a stranger must know to use the model and to judge it. Imports no torch."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from string import Template
from typing import Any

from finetune.config import ModelConfig
from finetune.data.decode import PAD_COLOR
from finetune.records.metric import followed_by
from finetune.records.result import Result

_CARD = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
_RESIZED = {
    "squash": "stretched to {n} × {n} whatever its aspect ratio",
    "crop": "cropped to its middle square and resized to {n} × {n}",
    "pad": "resized to fit into {n} × {n}, the rest filled with the grey {color}",
}
"""How an image gets its size, in words, by `data.resize`."""
_RESIZING_CODE = {
    "squash": "image.resize({size}, {method})",
    "crop": "ImageOps.fit(image, {size}, {method})",
    "pad": "ImageOps.pad(image, {size}, {method}, color={color})",
}
"""The same as Python code."""
_ORDINARY = (
    "The code below is for ordinary photographs: it neither lays transparency over white nor scales 16-bit pixels."
)
_DEEP = """Pixels of more than 8 bits are scaled by the range of the training images{ranges}.
The code below scales them too; it does not lay transparency over white."""
_SCALING = """
    if image.mode.startswith(("I", "F")):
        low, high = {floats} if image.mode == "F" else {integers}
        values = (np.asarray(image).astype(np.float64) - low) * (255 / (high - low))
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    image = image"""
"""What stands between opening an image and `.convert("RGB")`."""
_PLAIN = """With {library} alone, to train on or to take features from:

```python
{imports}
from safetensors.torch import load_file

{code}
probabilities = network.eval()(torch.from_numpy(pixels("photo.jpg"))).softmax(dim=1)
print(classes[probabilities[0].argmax()], probabilities[0].max().item())
```"""


def model_card(
    model: ModelConfig,
    classes: Sequence[str],
    pixels: dict[str, Any],
    library: str,
    code: str,
    result: Result | None,
    chosen: str,
    command: Sequence[str],
) -> str:
    """The text of an export's README.md.

    Args:
        model: The network's settings.
        classes: Names in label order.
        pixels: `size`, `resize`, `interpolation`, `mean`, `std`, `levels`.
        library: Where the network comes from, `torchvision` or `timm`; empty where it is neither's.
        code: `plain_code`'s lines, for that library.
        result: The record of the trial; None for a checkpoint that lies alone.
        chosen: What the sweep that chose the settings says of them; empty without one.
        command: The overrides that repeat the trial.
    """
    n, resize, interpolation = pixels["size"], pixels["resize"], pixels["interpolation"]
    method = f"Image.Resampling.{interpolation.upper()}"
    return _CARD.substitute(
        title=f"{model.backbone}: {', '.join(classes[:5])}{' …' if len(classes) > 5 else ''}",
        count=len(classes),
        network=_network(model),
        n=n,
        resized=_RESIZED[resize].format(n=n, color=PAD_COLOR),
        interpolation=interpolation,
        limits=_limits(pixels.get("levels")),
        scaling=_scaling(pixels.get("levels")),
        code=_RESIZING_CODE[resize].format(size=(n, n), method=method, color=PAD_COLOR),
        mean=list(pixels["mean"]),
        std=list(pixels["std"]),
        library=f"{library}'s" if library else "its own",
        plain=_plain(library, code) or f"torchvision has no network of its own like {model.backbone}.",
        classes="\n".join(f"{label}. {name}" for label, name in enumerate(classes)),
        metrics=_metrics(result, chosen),
        provenance=_provenance(model, result, command),
    )


def _limits(levels: Mapping[str, Any] | None) -> str:
    """What the code of the card does with pixels that are not opaque ones of 8 bits."""
    if levels is None:
        return _ORDINARY

    low, high = levels["integers"]
    ranges = f": {low} becomes black and {high} white"
    if levels["floats"] is not None:
        low, high = levels["floats"]
        ranges += f", of floating-point pixels {low:g} and {high:g}"
    return _DEEP.format(ranges=ranges)


def _scaling(levels: Mapping[str, Any] | None) -> str:
    if levels is None:
        return ""
    integers = tuple(levels["integers"])
    return _SCALING.format(integers=integers, floats=tuple(levels["floats"] or integers))


def _plain(library: str, code: str) -> str:
    """The section that loads the weights into the network of its own library."""
    imports = "\n".join(f"import {name}" for name in sorted(("torch", library)))
    return _PLAIN.format(library=library, imports=imports, code=code) if code else ""


def _network(model: ModelConfig) -> str:
    hidden = ", ".join(map(str, model.head.hidden))
    head = f"a head with hidden layers of {hidden}" if hidden else "a linear head"
    start = "random weights" if model.weights == "none" else f"the weights {PurePath(model.weights).name}"
    depth = f"{model.freeze_depth} ({model.freeze_unit}s)"
    return f"A {model.backbone} with {head}, started from {start} and frozen to depth {depth}"


def _metrics(result: Result | None, chosen: str) -> str:
    if result is None:
        return "Not known: the checkpoint lay without its record. `finetune test FOLDER IMAGES` measures it."

    paragraphs = []
    if result.val_acc_best is None:
        paragraphs.append("Trained on the validation images too, so it has no validation accuracy of its own.")
    else:
        epochs = f"epoch {(result.best_epoch or 0) + 1} of {len(result.history)}"
        paragraphs.append(
            f"Validation accuracy (top-1) {result.val_acc_best:.3f}, after {epochs}. {_chooser(result)} "
            "chose the epoch, and in a sweep the settings, so expect a little less on new images."
        )
    if "test/acc" in result.last:
        accuracy = result.last["test/acc"]
        paragraphs.append(f"Test accuracy (top-1) {accuracy:.3f}, on images that chose nothing.")
    if chosen:
        paragraphs.append(f"The sweep that chose the settings: {chosen}")
    return "\n\n".join(paragraphs)


def _chooser(result: Result) -> str:
    """What chose the epoch: the accuracy, or the metric that the trial followed, with its value."""
    metric = followed_by(result.config)
    return "It" if metric == "val/acc" else f"{metric}, {result.history[result.best_epoch or 0][metric]:.3f} then,"


def _provenance(model: ModelConfig, result: Result | None, command: Sequence[str]) -> str:
    if result is None:
        return "Exported from a checkpoint without its record, so neither data nor versions are known."

    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    digests = "\n".join(f"- {name}: `{digest}`" for name, digest in result.digests.items())
    weights = f"{PurePath(model.weights).name} and of " if model.weights != "none" else ""
    return f"""Trial {result.key}, seed {result.seed}, trained on {result.device}. The same again:

```sh
python -m finetune.train {shlex.join(command)}
```

Versions: {versions}. SHA-256 digests of what went in:

{digests}

The licence of {weights}the training images applies to this model too."""
