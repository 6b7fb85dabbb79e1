import copy

import pytest
import torch
from torch import nn

from finetune.network.backbone import build_backbone
from finetune.network.device import Precision
from finetune.network.freeze import find_cut
from finetune.network.parts import SharedPrefix, arrange_in_memory, first_contiguous, split_at

CPU = Precision(torch.device("cpu"))


def lies(part: nn.Module) -> set[torch.memory_format]:
    """In which layouts a part's 3 x 3 convolutions are; others look alike in both."""
    weights = [p for p in part.parameters() if p.ndim == 4 and p.shape[2] > 1]
    formats = (torch.channels_last, torch.contiguous_format)
    return {layout for layout in formats for p in weights if p.is_contiguous(memory_format=layout)}


@pytest.mark.parametrize(
    ("name", "size", "first"),
    [
        ("resnet18", 96, 6),
        ("resnet18", 224, 7),
        ("resnet50", 128, 14),
        ("resnet50", 224, None),
        ("narrow_resnet50", 32, None),
    ],
)
def test_units_of_many_weights_and_few_values_are_contiguous(name: str, size: int, first: int | None) -> None:
    assert first_contiguous(name, size, CPU) == first


def test_16_bits_have_channels_last_alone_and_32_bits_on_a_gpu_have_none() -> None:
    assert first_contiguous("resnet18", 96, Precision(torch.device("cpu"), torch.bfloat16)) is None
    assert first_contiguous("resnet18", 96, Precision(torch.device("meta"), torch.bfloat16)) is None
    assert first_contiguous("resnet18", 96, Precision(torch.device("meta"))) == 0


@pytest.mark.parametrize(
    ("depth", "dtype"),
    [
        (9, torch.bfloat16),
        (4, torch.float16),
        pytest.param(4, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(17, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_weights_rounded_once_give_the_bits_of_weights_rounded_in_each_pass(depth: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet50")
    prefix, _ = split_at(backbone, find_cut(backbone, depth, "block"))
    images = torch.randn(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype):
        each_time = SharedPrefix.of(prefix)(images)
        rounded = SharedPrefix.of(prefix, dtype=dtype)
        assert torch.equal(rounded(images), each_time)

    kinds = {m.weight.dtype for m in rounded.modules() if isinstance(m, nn.Conv2d)}
    assert (kinds, each_time.dtype) == ({dtype}, dtype)


@pytest.mark.parametrize("cut", [0, 5, 7])
def test_a_laid_out_suffix_computes_and_learns_the_same(cut: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18")
    prefix, suffix = split_at(backbone, find_cut(backbone, cut, "block"))
    plain = copy.deepcopy(suffix)
    arrange_in_memory(suffix, 6 - cut)
    x = prefix(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    found, expected = suffix(x.contiguous(memory_format=torch.channels_last)), plain(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for network in (suffix, plain):
        network(x).square().sum().backward()
    for (name, ours), theirs in zip(suffix.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad.stride() == ours.stride(), name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-2 * float(theirs.grad.abs().max()))
    layouts = [lies(part) for part in suffix]
    light = max(6 - cut, 0)
    assert all(torch.channels_last in found for found in layouts[:light])
    assert all(found == {torch.contiguous_format} for found in layouts[light:-1])


def test_a_laid_out_prefix_gives_the_same_activations() -> None:
    backbone = build_backbone("resnet18")
    prefix, _ = split_at(backbone, find_cut(backbone, "all", "block"))
    x = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain, laid_out = SharedPrefix.of(prefix), SharedPrefix.of(prefix, 6)
    for ours, theirs in zip(laid_out.activations(x, [4, 7, 10]), plain.activations(x, [4, 7, 10]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert lies(laid_out[8]) == {torch.contiguous_format}
