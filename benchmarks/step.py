"""What does a head's step cost beside a bare loop? `python benchmarks/step.py`; about 3 minutes.

The head of ResNet50 alone, 2,048 features to 10 classes, on one thread: ours from stored features, a whole trial in a
process that is there, less its start, against a loop over tensors in memory with the same optimizer, schedule and
figures. Processor seconds, in turn, `--repeats` rounds.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Figure, add_precision, base, make_images, print_rows, weights_file, write_json
from torch import nn

from finetune.compose import compose_config
from finetune.sharing.facts import Facts
from finetune.trial.module import cosine
from finetune.trial.run import train

IMAGES, BATCH, SIZE = 4_000, 32, 32
SHORT, LONG = 2, 42
"""Epochs of two trials, whose difference is steps and the validation of a few images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    add_precision(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = make_images(scratch / "images", IMAGES, 40, size=64)
        weights = weights_file(None, "resnet50", scratch)
        fixed = [*base(data, weights, scratch / "cache", SIZE, SHORT, given.precision), "cache.mode=on"]
        fixed += ["model.freeze_depth=all"]
        ours(fixed, scratch / "stores", SHORT)
        rounds = []
        for i in range(given.repeats):
            short, long = (ours(fixed, scratch / f"{i}-{epochs}", epochs) for epochs in (SHORT, LONG))
            steps = (LONG - SHORT) * -(-IMAGES // BATCH)
            rounds.append(((long - short) / steps, bare(given.precision == "bf16")))

    ms = [Figure(tuple(1000 * row[side] for row in rounds)) for side in (0, 1)]
    ratio = Figure(tuple(mine / floor for mine, floor in rounds))
    print_rows("a step of a head", ["ours, ms", "bare loop, ms", "ours / bare"], [[*ms, ratio]])
    write_json(given.json, {"ours": ms[0].record(), "bare": ms[1].record(), "ratio": ratio.record()})


def ours(fixed: list[str], out: Path, epochs: int) -> float:
    """Processor seconds of a trial of so many epochs."""
    words = [*fixed, f"trainer.epochs={epochs}", f"out={out}"]
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        train(compose_config(words), words, Facts())
    return time.process_time() - start


def bare(bf16: bool, epochs: int = 10) -> float:
    """Processor seconds of a step of a loop over features in memory."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.random((IMAGES, 2048), np.float32))
    features = features.bfloat16() if bf16 else features
    labels = torch.from_numpy(rng.integers(0, 10, IMAGES))
    head = nn.Linear(2048, 10)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, fused=True)
    total = epochs * -(-IMAGES // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(min(1.0, step / total), 0.05))
    loss_sum, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)

    start = time.process_time()
    for _ in range(epochs):
        for chosen in torch.randperm(IMAGES).split(BATCH):
            x, y = features[chosen], labels[chosen]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = head(x)
                loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach() * len(y)
            right += (logits.detach().argmax(1) == y).sum()
    return (time.process_time() - start) / total


if __name__ == "__main__":
    main()
