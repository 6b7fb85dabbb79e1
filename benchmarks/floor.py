"""The floor: a bare PyTorch loop over synthetic tensors that runs nothing but the suffix, in the faster memory layout.

`python benchmarks/floor.py BACKBONE PRECISION DEPTH SIZE TRAIN VAL` prints the seconds of one epoch in this process,
from a few steps.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from finetune.network.backbone import build_backbone
from finetune.network.device import FORMATS, Precision
from finetune.network.freeze import find_cut
from finetune.network.parts import split_at

BATCH = 32


def suffix_seconds(backbone: str, precision: str, depth: int, size: int, train: int, val: int, processes: int) -> float:
    """Seconds of an epoch of the bare loop, in `processes` that run it side by side, one thread each."""
    command = [sys.executable, str(Path(__file__)), backbone, precision, *map(str, (depth, size, train, val))]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    return max(float(json.loads(process.communicate()[0])) for process in running)


def epoch(
    name: str,
    depth: int,
    size: int,
    train: int,
    val: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 6.0,
) -> float:
    """Seconds of an epoch: the median step and the median validation batch, times their number.

    Each is timed for `seconds`; once, where that is 0, to see that it runs.
    A GPU is waited for every ten steps only, so that it has work ahead of it as in a real loop. In fp16 no loss is
    multiplied, which costs next to nothing.
    """
    torch.manual_seed(0)
    backbone = build_backbone(name)
    prefix, suffix = split_at(backbone, find_cut(backbone, depth, "block"))
    model = nn.Sequential(suffix, nn.Linear(backbone.width, 10)).to(device)
    with torch.no_grad():
        given = prefix.to(device)(torch.randn(BATCH, 3, size, size, device=device))
    x, y = given, torch.arange(BATCH, device=device) % 10
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=True)

    precision = Precision(torch.device(device), dtype)

    def step() -> None:
        optimizer.zero_grad()
        with precision.autocast():
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    def look() -> None:
        with torch.no_grad(), precision.autocast():
            model(x)

    def lie(layout: torch.memory_format) -> None:
        nonlocal x
        model.to(memory_format=layout)
        x = given.contiguous(memory_format=layout) if given.ndim == 4 else given

    def two_steps(layout: torch.memory_format) -> float:
        lie(layout)
        optimizer.state.clear()  # moments lie as the weights do
        step()
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    model.train()
    layouts = (torch.channels_last, torch.contiguous_format) if device == "cpu" else (torch.channels_last,)
    lie(min(layouts, key=two_steps))
    optimizer.state.clear()
    trained_one = _median(step, device, seconds)
    model.eval()
    return trained_one * train / BATCH + _median(look, device, seconds) * val / BATCH


def _median(run, device: str, seconds: float) -> float:  # type: ignore[no-untyped-def]
    at_once = 1 if device == "cpu" or not seconds else 10
    for _ in range(2 if seconds else 0):
        run()
    times: list[float] = []
    while len(times) < (5 if seconds else 1) or (sum(times) * at_once < seconds and len(times) < 50):
        _wait(device)
        start = time.perf_counter()
        for _ in range(at_once):
            run()
        _wait(device)
        times.append((time.perf_counter() - start) / at_once)
    return sorted(times)[len(times) // 2]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, precision, *numbers = sys.argv[1:]
    print(json.dumps(epoch(name, *map(int, numbers), dtype=FORMATS[precision])))
