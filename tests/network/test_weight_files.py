"""Weights files as people have them give the very tensors of a plain one, or say what they are."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from finetune.errors import Refused
from finetune.network.backbone import build_backbone
from finetune.network.weights import read_weights
from tests.network.test_backbone import scrambled

BACKBONE = build_backbone("cnn5")
STATE = scrambled(BACKBONE)
EPOCH = {"epoch": 3, "arch": "cnn5", "hyper_parameters": {"lr": 0.1}, "optimizer_states": []}


def under(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


CONTENTS: dict[str, tuple[object, str]] = {
    "plain.pth": (STATE, ""),
    "PLAIN.PTH": (STATE, ""),
    "plain.pth.tar": (STATE, ""),
    "plain.ckpt": (STATE, ""),
    "plain.bin": (STATE, ""),
    "plain.pkl": (STATE, ""),
    "no ending": (STATE, ""),
    "beside an epoch.pth": ({**STATE, "epoch": 3}, ""),
    "classifier.pth": ({**STATE, "fc.weight": torch.zeros(10, 256), "fc.0.bias": torch.zeros(3)}, ""),
    "gradients.pth": ({n: nn.Parameter(v) if v.is_floating_point() else v for n, v in STATE.items()}, ""),
    "parallel.pth": (under("module."), "under the prefix 'module.'"),
    "backbone.pth": (under("backbone."), "under the prefix 'backbone.'"),
    "compiled.pth": (under("_orig_mod."), "under the prefix '_orig_mod.'"),
    "wrapped.pth": ({"state_dict": STATE, **EPOCH}, "under 'state_dict'"),
    "model.pth": ({"model": STATE}, "under 'model'"),
    "lightning.ckpt": ({"state_dict": under("net."), **EPOCH}, "under 'state_dict' and the prefix 'net.'"),
    "queue.pth.tar": (
        {"state_dict": {"module.queue": torch.zeros(4), **under("module.encoder_q."), **under("module.encoder_k.")}},
        "and the prefix 'module.encoder_q.'; there are others under 'state_dict' and the prefix 'module.encoder_k.'",
    ),
    "average.pth": (
        {"state_dict_ema": under("", scrambled(BACKBONE)), "state_dict": STATE},
        "under 'state_dict'; there are others under 'state_dict_ema'",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_gives_the_tensors_of_a_plain_one_and_says_where_they_were(tmp_path: Path, name: str) -> None:
    content, note = CONTENTS[name]
    torch.save(content, tmp_path / name)
    torch.save(STATE, tmp_path / "reference.pth")
    found, expected = (read_weights(BACKBONE, str(tmp_path / file)) for file in (name, "reference.pth"))
    assert found.digests == expected.digests
    assert all(torch.equal(found.state[tensor], value) for tensor, value in STATE.items())
    assert not any(value.requires_grad for value in found.state.values())
    assert found.note.endswith(note)
    assert bool(found.note) == bool(note)
    part = read_weights(BACKBONE, str(tmp_path / name), found.digests, {"conv2.conv.weight"})
    assert list(part.state) == ["conv2.conv.weight"]


def test_a_prefix_in_safetensors_is_found_too(tmp_path: Path) -> None:
    safetensors.torch.save_file(under("resnet."), tmp_path / "w.safetensors")
    found = read_weights(BACKBONE, str(tmp_path / "w.safetensors"))
    assert all(torch.equal(found.state[name], value) for name, value in STATE.items())
    assert found.note.endswith("w.safetensors: taken are the tensors under the prefix 'resnet.'")


def text(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated it; people's files stay
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "page": (text(b"\n<!DOCTYPE html><html>"), "is a web page, not the weights; download the file"),
    "pointer": (text(b"version https://git-lfs.github.com/spec/v1\noid"), "is a Git LFS pointer.*`git lfs pull`"),
    "script": (script, "is a TorchScript program.*could run code; save its state_dict alone"),
    "whole": (lambda path: torch.save(nn.Linear(2, 2), path), "holds more than tensors.*save its state_dict alone"),
    "nothing": (text(b""), "cannot be read"),
    "other": (lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path), "is not cnn5's: it lacks"),
    "part": (lambda path: torch.save(under("module.", dict(list(STATE.items())[1:])), path), "lacks conv1.conv.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_file_of_weights_is_named_and_no_check_is_advised_away(tmp_path: Path, name: str) -> None:
    write, message = WRONG[name]
    write(tmp_path / "w.pth")
    with pytest.raises(Refused, match=message) as refusal:
        read_weights(BACKBONE, str(tmp_path / "w.pth"))
    assert "weights_only" not in str(refusal.value)


def test_an_address_is_refused_with_what_to_do() -> None:
    with pytest.raises(Refused, match="not fetched from addresses; download the file, and give its path"):
        read_weights(BACKBONE, "https://example.org/w.pth")
