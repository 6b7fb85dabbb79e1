"""Is it better to fit the head first? `python benchmarks/probe_first.py FOLDER --weights F`.

FOLDER has train/ and val/. ResNet18, or `--model resnet50`, at 64 px from a random head (plain fine-tuning) and from a
fitted one (`model.head.init=probe`), at freeze depth 0 and in the middle, over learning rates and seeds, five epochs.
Each is given its best learning rate by the mean over seeds on the validation images; its models then predict corrupted
copies of these: blurred, noisy, and saved as JPEG of quality 10.
"""

import argparse
import io
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import images_and_weights, print_rows, write_json
from PIL import Image, ImageFilter

from finetune.compose import compose_config
from finetune.data.folders import labelled_images
from finetune.export.classifier import load_classifier
from finetune.export.predict import probabilities_of
from finetune.records.layout import CHECKPOINT
from finetune.records.result import Result
from finetune.trial.run import train

DEPTHS = {"resnet18": (0, 5), "resnet50": (0, 8)}
SEEDS, SIZE = 3, 64


def blurred(image: Image.Image) -> Image.Image:
    """A Gaussian of 1.5 % of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(0.015 * min(image.size)))


def noisy(image: Image.Image) -> Image.Image:
    """Normal noise of a standard deviation of 40 grey levels, at the size that the network sees."""
    pixels = np.asarray(image.resize((2 * SIZE, 2 * SIZE)), np.float64)
    noise = np.random.default_rng(0).normal(0, 40, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def compressed(image: Image.Image) -> Image.Image:
    """A JPEG of quality 10."""
    buffer = io.BytesIO()
    image.resize((2 * SIZE, 2 * SIZE)).save(buffer, "JPEG", quality=10)
    return Image.open(buffer).convert("RGB")


CORRUPTIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blur": blurred,
    "noise": noisy,
    "JPEG": compressed,
}


def main() -> None:
    parser = images_and_weights(__doc__)
    parser.add_argument("--model", choices=tuple(DEPTHS), default="resnet18")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0001, 0.0003, 0.001], help="learning rates to try")
    parser.add_argument("--depths", type=int, nargs="+", help="freeze depths; both of the model's if not given")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        copies = {name: corrupted(given.data, scratch / name, change) for name, change in CORRUPTIONS.items()}
        for depth in given.depths or DEPTHS[given.model]:
            for init in ("random", "probe"):
                rows.append(row_of(given, scratch, depth, init, copies))
                print(rows[-1], flush=True)

    print_rows("head first", list(rows[0]), [list(row.values()) for row in rows])
    write_json(given.json, {"images": given.data.name, "model": given.model, "rows": rows})


def corrupted(data: Path, to: Path, change: Callable[[Image.Image], Image.Image]) -> list[tuple[Path, str]]:
    """Changed copies of the validation images, with their classes."""
    copies = []
    for path, label in labelled_images(data, "val")[1]:
        file = to / label / f"{path.stem}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        change(Image.open(path).convert("RGB").resize((4 * SIZE, 4 * SIZE))).save(file)
        copies.append((file, label))
    return copies


def row_of(
    given: argparse.Namespace, scratch: Path, depth: int, init: str, copies: dict[str, list[tuple[Path, str]]]
) -> dict[str, Any]:
    """Accuracies of the best learning rate, means over seeds with their standard deviation."""
    trials = {rate: [trial(given, scratch, depth, init, rate, seed) for seed in range(SEEDS)] for rate in given.rates}
    rate = max(given.rates, key=lambda rate: statistics.fmean(result.accuracy for result, _ in trials[rate]))
    best = trials[rate]
    row = {"k": depth, "head": init, "lr": rate, "val/acc": spread([result.accuracy for result, _ in best])}
    for name, labelled in copies.items():
        row[name] = spread([accuracy_of(out / CHECKPOINT, labelled) for _, out in best])
    row["probe"] = best[0][0].probe_val_acc
    row["s"] = round(statistics.fmean(result.total_seconds for result, _ in best), 1)
    for _, out in (one for of_rate in trials.values() for one in of_rate):
        shutil.rmtree(out)
    return row


def trial(
    given: argparse.Namespace, scratch: Path, depth: int, init: str, rate: float, seed: int
) -> tuple[Result, Path]:
    out = scratch / f"{depth}-{init}-{rate}-{seed}"
    words = [
        *(f"model={given.model}", f"model.weights={given.weights}", f"model.freeze_depth={depth}"),
        f"trainer.precision={given.precision}",
        *(f"model.head.init={init}", f"optim.lr={rate}", f"seed={seed}", f"data.root={given.data}"),
        *(f"data.size={SIZE}", f"cache.dir={scratch / 'cache'}", "trainer.accelerator=cpu", f"out={out}"),
    ]
    return train(compose_config(words), words), out


def accuracy_of(checkpoint: Path, labelled: list[tuple[Path, str]]) -> float:
    classifier = load_classifier(checkpoint)
    predicted = probabilities_of(classifier, [path for path, _ in labelled], 32, "cpu")
    right = [
        classifier.classes[int(np.argmax(row))] == label
        for (_, row), (_, label) in zip(predicted, labelled, strict=True)
    ]
    return sum(right) / len(right)


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
