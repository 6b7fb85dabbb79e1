"""Trained models for tests, a second or so each; and the command as a person runs it."""

import itertools
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
import torchvision
from PIL import Image

from finetune import cli
from finetune.compose import compose_config
from finetune.network.backbone import build_backbone
from finetune.records.layout import CHECKPOINT
from finetune.records.result import Result
from finetune.trial import signals
from finetune.trial.run import train

COLORS = {"blue": (60, 60, 200), "green": (60, 200, 60), "red": (200, 60, 60)}


def plain_trainer(epochs: int) -> pl.Trainer:
    """Lightning without anything that prints or writes."""
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def draw(root: Path, train: int = 8, val: int = 4) -> Path:
    """Three classes of noisy 40 x 32 photographs, each mostly of one colour."""
    for split, count in (("train", train), ("val", val)):
        for label, (name, color) in enumerate(COLORS.items()):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng((label, i, count)).normal(0, 60, (32, 40, 3))
                pixels = np.clip(np.asarray(color) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def random_weights(name: str, path: Path) -> Path:
    """Weights of a torchvision network as their owners save them; with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, 32, 32))
    torch.save(model.state_dict(), path)
    return path


def small_network(weights: Path, freeze_depth: int = 3) -> list[str]:
    """Overrides of five small convolutions on weights of our own, written to `weights`; 0 to 5 of them are frozen."""
    if not weights.exists():
        torch.manual_seed(0)
        network = build_backbone("cnn5").model
        with torch.no_grad():
            for _ in range(3):  # statistics that are not 0 and 1
                network(torch.randn(8, 3, 32, 32))
        torch.save(network.state_dict(), weights)
    return ["model=cnn5", f"model.weights={weights}", f"model.freeze_depth={freeze_depth}"]


def small_trial(images: Path, weights: Path) -> list[str]:
    """Overrides of a trial of that network for two epochs of three batches."""
    return [
        *small_network(weights)[:2],
        f"data.root={images}",
        "data.size=32",
        "data.batch_size=8",
        "trainer.epochs=2",
        "trainer.accelerator=cpu",
    ]


def trial(out: Path, *overrides: str) -> Result:
    """Train one epoch and leave record and checkpoint in `out`."""
    fast = ["data.size=32", "data.batch_size=8", "trainer.epochs=1", "trainer.accelerator=cpu"]
    words = [*fast, *overrides]
    return train(compose_config([*words, f"out={out}"]), words)


def finetune(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run `finetune WORDS` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["finetune", *map(str, words)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)


def adamw(network: torch.nn.Module) -> torch.optim.Optimizer:
    """PyTorch's AdamW as it comes, over all that trains."""
    return torch.optim.AdamW([parameter for parameter in network.parameters() if parameter.requires_grad])


def same_model(first: Path, second: Path) -> bool:
    """Whether two trials have left the same weights, to the bit."""
    ones, others = (safetensors.torch.load_file(out / CHECKPOINT) for out in (first, second))
    return all(torch.equal(value, others[name]) for name, value in ones.items())


def terminate_at(look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial finds that it is to end when it looks for the `look`th time from now on; later ones find nothing."""
    requested, looks = signals.requested, itertools.count(1)
    monkeypatch.setattr(signals, "requested", lambda: 143 if next(looks) == look else requested())
