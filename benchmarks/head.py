"""Is the head alone trained as well as it can be? `python benchmarks/head.py FOLDER --weights F`.

FOLDER has train/ and val/. ResNet18 at 96 px, everything frozen, so that a linear head is all that trains: ours over
some learning rates, five epochs as by default, three seeds, beside scikit-learn's logistic regression on the very
features that ours reads from their store, over some strengths of its penalty. Both are given their best setting on the
validation images. They should agree within one standard error of an accuracy on so many images. About 2 minutes.
"""

import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
from common import images_and_weights, print_rows, write_json
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from finetune.compose import compose_config
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from finetune.sharing.prepare import open_activations
from finetune.sharing.requests import preprocess_of, requests_of
from finetune.trial.run import train

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""scikit-learn's C: the smaller, the stronger the penalty; 1 is its default."""
SEEDS = 3


def main() -> None:
    given = images_and_weights(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fixed = [
            *("model=resnet18", f"model.weights={given.weights}", "model.freeze_depth=all"),
            f"trainer.precision={given.precision}",
            *(f"data.root={given.data}", "data.size=96", f"cache.dir={folder}", "cache.mode=on"),
        ]
        ours = {rate: ours_at(rate, fixed, Path(folder)) for rate in RATES}
        features = stored_features(fixed)

    theirs = {strength: theirs_at(strength, features) for strength in STRENGTHS}
    best, reference = max(ours.values()), max(theirs.values())
    error = math.sqrt(reference * (1 - reference) / len(features["val"][1]))
    print_rows("our head", ["lr", "val/acc"], [[rate, value] for rate, value in ours.items()])
    print_rows("scikit-learn's", ["C", "val/acc"], [[strength, value] for strength, value in theirs.items()])
    print(f"best {best:.4f} against {reference:.4f}; one standard error is {error:.4f}")
    figures = {"ours": best, "scikit-learn": reference, "error": error}
    write_json(given.json, {"images": given.data.name, "ours": ours, "theirs": theirs, **figures})


def ours_at(rate: float, fixed: list[str], folder: Path) -> float:
    """The mean over seeds of the best epoch's accuracy."""
    values = []
    for seed in range(SEEDS):
        words = [*fixed, f"optim.lr={rate}", f"seed={seed}", f"out={folder / f'{rate}-{seed}'}"]
        accuracy = train(compose_config(words), words).val_acc_best
        assert accuracy is not None
        values.append(accuracy)
    return sum(values) / SEEDS


def stored_features(fixed: list[str]) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """By split, what our head reads, N x width, and the classes."""
    config = compose_config(fixed)
    images, weights, cut = open_images(config, Facts())
    requests = requests_of(config, images, weights, cut, preprocess_of(config, weights))
    rows = open_activations(cut, requests, Facts()).rows
    return {split: (rows[split][0][:], store.labels) for split, store in images.splits.items() if split in rows}


def theirs_at(strength: float, features: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]) -> float:
    """The accuracy of logistic regression on the validation images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(*features["train"])
    return float(fitted.score(*features["val"]))


if __name__ == "__main__":
    main()
