"""Fine-tuning as people write it today, to compare with: Lightning, ImageFolder, PIL transforms in two workers.

`python benchmarks/naive.py KEY=VALUE …`, one trial in a process of its own. `careful=1` is what an expert would add:
the frozen part in eval mode and without gradient.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision import transforms

SETTINGS: dict[str, Any] = {
    "data": "", "weights": "", "out": "", "backbone": "resnet50", "depth": 17, "lr": 0.001, "hidden": 0, "epochs": 5,
    "stop_after": 5, "size": 128, "batch": 32, "seed": 0, "careful": 0, "flip": 0,
    "precision": "32",
}  # fmt: skip


class Naive(pl.LightningModule):
    def __init__(self, given: dict[str, Any], classes: int):
        super().__init__()
        self.given = given
        model = torchvision.models.get_model(given["backbone"], weights=None)
        state = torch.load(given["weights"], weights_only=True)
        model.load_state_dict(
            {name: value for name, value in state.items() if not name.startswith("fc.")}, strict=False
        )
        blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
        self.frozen = [model.conv1, model.bn1, *blocks][: given["depth"] + 1] if given["depth"] else []
        for module in self.frozen:
            module.requires_grad_(False)
        width, hidden = model.fc.in_features, given["hidden"]
        layers = (
            [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes)] if hidden else [nn.Linear(width, classes)]
        )
        model.fc = nn.Sequential(*layers)
        self.model, self.right, self.seen = model, 0, 0
        self.epochs: list[dict[str, float]] = []
        self.started = time.perf_counter()

    def on_train_epoch_start(self) -> None:
        self.started = time.perf_counter()

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if self.given["careful"]:
            for module in self.frozen:
                module.eval()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.right += int((self.model(x).argmax(1) == y).sum())
        self.seen += len(y)

    def on_validation_epoch_end(self) -> None:
        self.log("val/acc", self.right / self.seen)
        self.epochs.append({"val/acc": self.right / self.seen, "seconds": time.perf_counter() - self.started})
        self.right = self.seen = 0
        if len(self.epochs) == self.given["stop_after"]:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.given["lr"], weight_decay=0.01)
        total = int(self.trainer.estimated_stepping_batches)
        warm = 0.05 * total

        def factor(step: int) -> float:
            if step < warm:
                return max(step / warm, 1e-3)
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    given = dict(SETTINGS)
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        given[key] = type(SETTINGS[key])(value)
    pl.seed_everything(given["seed"], workers=True)
    normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    resize = [transforms.Resize((given["size"], given["size"]))]
    usual = transforms.Compose([*resize, transforms.ToTensor(), normal])
    flipped = transforms.Compose([*resize, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normal])
    root = Path(given["data"])
    folders = {
        "train": torchvision.datasets.ImageFolder(root / "train", flipped if given["flip"] else usual),
        "val": torchvision.datasets.ImageFolder(root / "val", usual),
    }
    loaders = {
        split: torch.utils.data.DataLoader(folder, given["batch"], shuffle=split == "train", num_workers=2)
        for split, folder in folders.items()
    }
    module = Naive(given, len(folders["train"].classes))
    trainer = pl.Trainer(
        max_epochs=given["epochs"],
        default_root_dir=Path(given["out"]).parent,
        num_sanity_val_steps=0,
        precision="bf16-mixed" if given["precision"] == "bf16" else "32-true",
    )
    trainer.fit(module, loaders["train"], loaders["val"])
    Path(given["out"]).write_text(json.dumps({"epochs": module.epochs}))


if __name__ == "__main__":
    main()
