"""A trained network as a folder that others can use without this package."""

import contextlib
import inspect
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from finetune.errors import Refused
from finetune.export.classifier import Classifier, exported_bytes
from finetune.records.layout import EXPORTED
from finetune.storage.durable import published_folder, refuse_unwritable

ONNX, PT2, CLASSES, CARD = "model.onnx", "model.pt2", "classes.json", "README.md"
INPUT, OUTPUT = "pixels", "probabilities"
"""The names of the ONNX model's input and output."""


def export(classifier: Classifier, out: Path, card: str) -> None:
    """Write weights, programs, class names and the model card into the new folder `out`.

    Both programs take normalised images, float32, N × 3 × size × size with any N, and give softmax probabilities,
    N × classes. `model.safetensors` gives logits.

    Raises:
        Refused: `out` cannot be used, a package that writes ONNX is missing, or the network cannot be written so.
    """
    refuse_unusable(out)
    network = nn.Sequential(classifier.network, nn.Softmax(dim=1)).eval()
    with torch.no_grad():
        network(_example(classifier))  # has layers fill tables that they keep, of which the exporters would warn
    files = {
        EXPORTED: exported_bytes(classifier),
        ONNX: _written(_onnx, "ONNX", network, classifier),
        PT2: _written(_pt2, "a program of torch.export", network, classifier),
        CLASSES: class_file(classifier.classes),
        CARD: card.encode(errors="replace"),
    }

    out.parent.mkdir(parents=True, exist_ok=True)
    with published_folder(out) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)


def _written(
    write: Callable[[nn.Module, Classifier], bytes], what: str, network: nn.Module, classifier: Classifier
) -> bytes:
    try:
        return write(network, classifier)
    except Refused:
        raise
    except Exception as error:  # whatever the exporters of PyTorch raise
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter to ONNX only says that another failed
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise Refused(
            f"{classifier.model.backbone} cannot be written as {what} by torch {torch.__version__} ({lines[0][:200]}); "
            "use it with `finetune predict`, which needs no export, or train another network"
        ) from error


def refuse_unusable(out: Path) -> None:
    """Make sure that an export can be written to `out`.

    Raises:
        Refused: `out` exists and is not an empty folder, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} exists already; give the path of a new folder")
    refuse_unwritable(out, "the folder")


def class_file(classes: Sequence[str]) -> bytes:
    """Class names as JSON in UTF-8; a folder's name that is no text is escaped as JSON can."""
    return (json.dumps(list(classes), indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _example(classifier: Classifier) -> torch.Tensor:
    size = classifier.preprocessing.size
    return torch.zeros(2, 3, size, size)  # two, because a batch of one would be taken for a constant


def _about(classifier: Classifier) -> dict[str, str]:
    """What both programs carry beside the network."""
    return {"classes": json.dumps(classifier.classes), "preprocessing": classifier.preprocessing.text}


def _onnx(network: nn.Module, classifier: Classifier) -> bytes:
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise Refused(
            f"export writes ONNX with torch 2.6 or newer, and this is {torch.__version__}; export it where there is "
            "one: it needs the folder of the sweep, and the pretrained weights"
        )

    try:
        with _attention_in_steps(network), _no_warnings_of("onnxscript"):  # of what it does not simplify
            program = torch.onnx.export(
                network,
                (_example(classifier),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: Dim("batch")},),
                verbose=False,
            )
    except ImportError as error:
        raise Refused(f"export writes ONNX with {error.name}, which is missing; pip install onnx onnxscript") from error
    assert program is not None

    model = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # the exporter's traces, with the paths of this machine
    for key, value in _about(classifier).items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def _attention_in_steps(network: nn.Module) -> Iterator[None]:
    """Have timm's attention be products and a softmax: ONNX has none of five dimensions, as Hiera's is."""
    fused = [vars(module) for module in network.modules() if vars(module).get("fused_attn")]
    for attention in fused:
        attention["fused_attn"] = False
    try:
        yield
    finally:
        for attention in fused:
            attention["fused_attn"] = True


@contextlib.contextmanager
def _no_warnings_of(package: str) -> Iterator[None]:
    logger = logging.getLogger(package)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _pt2(network: nn.Module, classifier: Classifier) -> bytes:
    program = torch.export.export(network, (_example(classifier),), dynamic_shapes=({0: Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it holds the paths of this machine
        node.meta.pop("nn_module_stack", None)  # whose commas torch 2.4 takes for separators

    file = io.BytesIO()
    torch.export.save(program, file, extra_files=_about(classifier))
    return file.getvalue()
