"""Make the shipped weights of narrow_resnet50: `python benchmarks/pretrain_shapes.py OUT.safetensors`.

Trains on the source task of `data/shapes.py`, 48,000 images, 8 epochs: about 25 minutes on one CPU core.
Prints source validation accuracy every epoch.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.shapes import SOURCE_CLASSES, draw, source_image
from finetune.network.own import NarrowResNet50
from finetune.storage.durable import write_durably

PER_CLASS, EPOCHS, BATCH, LR = 800, 8, 64, 2e-3
MEAN, STD = 0.5, 0.25


def main(out: Path) -> None:
    """Draw, train, and write the backbone's weights without the classifier, matrices rounded to 16 bits."""
    classes = len(SOURCE_CLASSES)
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_draw, [PER_CLASS // 8] * 8, range(100, 108)))
    images, labels = np.concatenate([i for i, _ in parts]), torch.from_numpy(np.concatenate([y for _, y in parts]))
    held_out, answers = draw(source_image, classes, 10, 99)
    torch.manual_seed(0)
    model = NarrowResNet50()
    model.fc = nn.Linear(512, classes)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        model.train()
        for index in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            x = _normalised(images[index.numpy()])
            mirrored = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x, x.flip(3))
            loss = F.cross_entropy(model(mirrored), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}  val/acc {_accuracy(model, held_out, answers):.3f}", flush=True)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    packed = {name: (v.half() if v.ndim > 1 else v).contiguous() for name, v in state.items()}
    about = {"mean": f"{MEAN} {MEAN} {MEAN}", "std": f"{STD} {STD} {STD}"}
    write_durably(out, safetensors.torch.save(packed, metadata=about))


def _draw(per_class: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return draw(source_image, len(SOURCE_CLASSES), per_class, seed)


def _normalised(images: NDArray[np.uint8]) -> Tensor:
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def _accuracy(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(_normalised(images[i : i + 100])).argmax(1) for i in range(0, len(images), 100)])
    return float((guesses == torch.from_numpy(labels)).float().mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
