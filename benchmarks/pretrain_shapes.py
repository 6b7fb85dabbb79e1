"""Make the weights that ship with a network: `python benchmarks/pretrain_shapes.py NETWORK OUT.safetensors`.

Trains on the source task of `data/shapes.py`, 48,000 images: about 25 minutes on one CPU core for narrow_resnet50, 15
for the others, which take their first units from it as they are. Prints source validation accuracy every epoch.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.shapes import SIZE, SOURCE_CLASSES, draw, source_image
from finetune.network.backbone import Backbone, build_backbone
from finetune.network.own import SHAPES_WEIGHTS
from finetune.network.weights import load_state, read_weights
from finetune.storage.durable import write_durably

PER_CLASS, BATCH, LR = 800, 64, 2e-3
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Recipe:
    epochs: int
    taken: int = 0
    """How many units are the narrow ResNet50's, and stay so: what a ViT or a ConvNeXt finds in them it learns in
    minutes; from the pixels of so few images neither learned anything."""
    warm_up: float = 0.3
    """Share of the steps in which the learning rate rises."""
    largest_gradient: float = math.inf
    """Norm to which longer ones are shortened."""


RECIPES = {
    "narrow_resnet50": Recipe(8),
    "vit_narrow": Recipe(4, taken=8, warm_up=0.15, largest_gradient=1),
    "convnext_narrow": Recipe(3, taken=4, warm_up=0.15, largest_gradient=1),
}


def main() -> None:
    """Draw, train, and write the backbone's weights without the classifier, matrices rounded to 16 bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=tuple(RECIPES))
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    recipe = RECIPES[given.network]

    # 1. Images
    with ProcessPoolExecutor() as pool:
        parts = list(pool.map(_draw, [PER_CLASS // 8] * 8, range(100, 108)))
    images, labels = np.concatenate([i for i, _ in parts]), torch.from_numpy(np.concatenate([y for _, y in parts]))
    held_out, answers = _draw(10, 99)

    # 2. The network: what is taken, and what learns
    torch.manual_seed(0)
    backbone = build_backbone(given.network, SIZE)
    take_units(backbone, recipe.taken)
    backbone.model.to(memory_format=torch.channels_last)
    taken = nn.Sequential(*backbone.modules[: recipe.taken]).eval()
    learning = nn.Sequential(*backbone.modules[recipe.taken :], nn.Linear(backbone.width, len(SOURCE_CLASSES)))

    # 3. Training
    optimizer = torch.optim.AdamW(learning.parameters(), weight_decay=0.05)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=recipe.epochs * steps, pct_start=recipe.warm_up
    )
    for epoch in range(recipe.epochs):
        learning.train()
        for index in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            x = _normalised(images[index.numpy()])
            with torch.no_grad():
                x = taken(torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x, x.flip(3)))
            loss = F.cross_entropy(learning(x), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learning.parameters(), recipe.largest_gradient)
            optimizer.step()
            schedule.step()
        accuracy = _accuracy(nn.Sequential(taken, learning), held_out, answers)
        print(f"epoch {epoch + 1}/{recipe.epochs}  val/acc {accuracy:.3f}", flush=True)

    # 4. The file
    packed = {name: (v.half() if v.ndim > 1 else v).contiguous() for name, v in backbone.model.state_dict().items()}
    about = {"mean": f"{MEAN} {MEAN} {MEAN}", "std": f"{STD} {STD} {STD}"}
    write_durably(given.out, safetensors.torch.save(packed, metadata=about))


def take_units(backbone: Backbone, count: int) -> None:
    """Give the first units the values of the narrow ResNet50's, which are built alike and named otherwise."""
    source = build_backbone("narrow_resnet50", SIZE)
    load_state(source, read_weights(source, SHAPES_WEIGHTS).state)
    for own, other in zip(backbone.modules[:count], source.modules[:count], strict=True):
        own.load_state_dict(dict(zip(own.state_dict(), other.state_dict().values(), strict=True)))


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
    main()
