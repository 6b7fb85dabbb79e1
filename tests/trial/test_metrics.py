from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from finetune.compose import compose_config
from finetune.records.correct import unpack_labels
from finetune.records.intervals import estimate
from finetune.records.predictions import Predictions, predictions_of
from finetune.records.result import Result
from finetune.trial.metrics import measure
from finetune.trial.run import train

CLASSES = 5
METRICS = ("val/balanced_acc", "val/f1", "val/auroc")


def drawn(seed: int, missing: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with many ties, and labels that may lack a class which is predicted all the same."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (200,), generator=generator)
    if missing is not None:
        labels[labels == missing] = (missing + 1) % CLASSES
    logits = torch.randint(-2, 3, (200, CLASSES), generator=generator).float()
    logits[torch.arange(200), labels] += torch.randint(3, (200,), generator=generator).float()
    return logits, labels


def theirs(metric: str, probabilities: np.ndarray, labels: np.ndarray) -> float:
    predicted = probabilities.argmax(1)
    if metric == "val/f1":
        return float(f1_score(labels, predicted, average="macro"))
    if metric == "val/balanced_acc":
        return float(balanced_accuracy_score(labels, predicted))
    present = np.unique(labels)
    areas = [roc_auc_score(labels == label, probabilities[:, label]) for label in present]
    return float(np.mean(areas))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("missing", [None, 3])
def test_metrics_are_those_of_scikit_learn_with_ties_and_missing_classes(metric: str, missing: int | None) -> None:
    for seed in range(5):
        logits, labels = drawn(seed, missing)
        probabilities = logits.softmax(1)
        expected = theirs(metric, probabilities.numpy(), labels.numpy())
        assert measure(metric, logits, labels) == pytest.approx(expected, abs=1e-6)
        kept = of(probabilities.numpy(), labels.numpy())
        assert estimate(metric, kept)[0] == pytest.approx(expected, abs=1e-9)
    if missing is None and metric == "val/auroc":
        whole = roc_auc_score(labels.numpy(), logits.double().softmax(1).numpy(), multi_class="ovr")
        assert whole == pytest.approx(measure(metric, logits, labels), abs=1e-3)  # rounding breaks ties


def of(probabilities: np.ndarray, labels: np.ndarray) -> Predictions:
    paths = [Path(f"{i}.png") for i in range(len(labels))]
    blank = lambda chosen: np.zeros((len(chosen), 8, 8, 3), np.uint8)  # noqa: E731
    return predictions_of(probabilities.astype(np.float32), labels, paths, None, blank)


@pytest.mark.slow
def test_intervals_are_as_wide_as_new_images_scatter() -> None:
    """The standard deviation of a metric over 100 sets of images is about a quarter of the interval on one."""
    rng = np.random.default_rng(0)

    def images() -> Predictions:
        labels = rng.choice(3, size=200, p=[0.6, 0.3, 0.1])
        logits = rng.normal(size=(200, 3))
        logits[np.arange(200), labels] += 1
        return of(torch.tensor(logits).softmax(1).numpy(), labels)

    for metric in ("val/balanced_acc", "val/f1", "val/auroc", "val/loss"):
        estimates = [estimate(metric, images()) for _ in range(100)]
        width = np.mean([high - low for _, low, high in estimates])
        assert width / (2 * 1.96) == pytest.approx(np.std([value for value, _, _ in estimates]), rel=0.2), metric


def test_the_loss_is_that_of_scikit_learn() -> None:
    logits, labels = drawn(0, None)
    kept = of(logits.softmax(1).numpy(), labels.numpy())
    assert estimate("val/loss", kept)[0] == pytest.approx(log_loss(kept.labels, kept.probabilities), abs=1e-6)


def test_the_error_of_an_area_is_that_of_its_images_drawn_again() -> None:
    logits, labels = drawn(0, None)
    probabilities, names = logits.softmax(1).numpy(), labels.numpy()
    value, low, high = estimate("val/auroc", of(probabilities, names))
    rng = np.random.default_rng(0)
    again = [theirs("val/auroc", probabilities[i], names[i]) for i in rng.integers(200, size=(100, 200))]
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(again), rel=0.2)
    assert low < value < high


def test_of_one_class_there_is_no_roc_curve() -> None:
    assert np.isnan(estimate("val/auroc", of(np.array([[0.7, 0.3], [0.6, 0.4]]), np.array([0, 0])))).all()


@pytest.mark.parametrize("metric", ["val/loss", "val/f1", pytest.param("val/balanced_acc", marks=pytest.mark.slow)])
def test_a_trial_follows_its_metric(small: list[str], tmp_path: Path, metric: str) -> None:
    """Of epochs that differ, the best by the metric is kept, and the record says so."""
    start = ["model.weights=none", "model.freeze_depth=0", "optim.lr=0.0002"]  # slowly, from nothing
    words = [*small, *start, "trainer.epochs=5", f"trainer.metric={metric}"]
    result = train(compose_config([*words, f"out={tmp_path / 'r'}"]), words)
    values = [epoch[metric] for epoch in result.history]
    best = min(values) if metric == "val/loss" else max(values)
    assert len(set(values)) > 1
    assert result.best_epoch == values.index(best)
    assert result.val_acc_best == result.history[values.index(best)]["val/acc"]

    kept = Predictions.load(tmp_path / "r")
    assert kept is not None
    assert estimate(metric, kept)[0] == pytest.approx(best, abs=1e-5)
    if metric != "val/loss":
        assert unpack_labels(result.val_labels).tolist() == kept.labels.tolist()
    assert Result.load(tmp_path / "r").val_labels == result.val_labels
