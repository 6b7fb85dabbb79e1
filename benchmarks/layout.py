"""Which memory layout trains faster on a CPU, from which depth on? `python benchmarks/layout.py`; about 3 minutes.

One training step of 32 random images on one thread, of what lies after a cut: channels last, contiguous, and as
`finetune.network.parts` has it, in turn. Prints medians, and the ratio of channels last over ours with its spread.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Figure, add_precision, print_rows, write_json
from torch import nn

from finetune.network.backbone import build_backbone
from finetune.network.device import FORMATS, Precision
from finetune.network.freeze import find_cut
from finetune.network.parts import arrange_in_memory, first_contiguous, split_at

CASES = {("resnet18", 96): (0, 3, 5, 7), ("resnet50", 128): (0, 4, 8, 14)}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    add_precision(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    precision = Precision(torch.device("cpu"), FORMATS[given.precision])
    found = {}
    for (name, size), depths in CASES.items():
        for depth in depths:
            found[f"{name}, {size} px, k={depth}"] = seconds_of(name, size, depth, given.repeats, precision)
    columns = ["channels last, s", "contiguous, s", "ours, s", "channels last / ours"]
    print_rows("a training step", ["what trains", *columns], [[what, *row] for what, row in found.items()])
    write_json(given.json, {what: [figure.record() for figure in row] for what, row in found.items()})


def seconds_of(name: str, size: int, depth: int, repeats: int, precision: Precision) -> list[Figure]:
    """Seconds of a step in each layout, and the ratio of the first over the last."""
    torch.manual_seed(0)
    backbone = build_backbone(name)
    prefix, suffix = split_at(backbone, find_cut(backbone, depth, "block"))
    with torch.no_grad():
        x = prefix(torch.randn(BATCH, 3, size, size)).contiguous(memory_format=torch.channels_last)
    plain, last, ours = copy.deepcopy(suffix), copy.deepcopy(suffix), suffix
    first = first_contiguous(name, size, precision)
    arrange_in_memory(last)
    arrange_in_memory(ours, None if first is None else first - depth)
    steps = [step_of(last, x, precision), step_of(plain, x.contiguous(), precision), step_of(ours, x, precision)]
    times: list[list[float]] = [[], [], []]
    for _ in range(repeats):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
    ratios = tuple(a / b for a, b in zip(times[0], times[2], strict=True))
    return [*(Figure(tuple(taken)) for taken in times), Figure(ratios)]


def step_of(suffix: nn.Module, x: torch.Tensor, precision: Precision) -> Callable[[], None]:
    """A step, run twice already."""
    model = nn.Sequential(suffix, nn.LazyLinear(10)).train()
    model(x)
    optimizer, y = torch.optim.AdamW(model.parameters(), 1e-4, fused=True), torch.arange(BATCH) % 10

    def step() -> None:
        optimizer.zero_grad()
        with precision.autocast():
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    step()
    step()
    return step


if __name__ == "__main__":
    main()
