from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from finetune.compose import compose_config
from finetune.errors import Refused
from finetune.network.head import build_head
from finetune.records.result import Result, outcome
from finetune.sharing.facts import Facts
from finetune.sharing.features import pretrained_features
from finetune.sharing.images import open_images
from finetune.sharing.prepare import prepare
from finetune.sharing.requests import preprocess_of
from finetune.trial.probe import fit_head
from finetune.trial.run import train


def drawn(seed: int, images: int = 90, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three overlapping classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=images)
    middles = np.random.default_rng(0).normal(size=(3, width))
    return torch.tensor(middles[labels] + rng.normal(0, 2, (images, width)), dtype=torch.float32), torch.tensor(labels)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_a_linear_head_is_logistic_regression_of_scikit_learn(weights: list[float] | None) -> None:
    (x, y), (val_x, val_y) = drawn(1), drawn(2)
    head = build_head(12, [], 3, dropout=0.5)
    probe = fit_head(head, {"train": x, "val": val_x}, {"train": y, "val": val_y}, weights)

    by_class = None if weights is None else dict(enumerate(weights))
    theirs = LogisticRegression(class_weight=by_class, max_iter=5000, tol=1e-8).fit(x.double().numpy(), y.numpy())
    head.eval()
    ours = head(val_x).softmax(1).detach().numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(val_x.double().numpy()), atol=1e-4)
    np.testing.assert_allclose(head[-1].weight.detach().numpy(), theirs.coef_, atol=1e-3)
    assert probe.val_acc == pytest.approx(theirs.score(val_x.double().numpy(), val_y.numpy()))
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in head.parameters())


def test_a_deeper_head_learns_what_a_linear_one_cannot() -> None:
    """Two classes of opposite corners (XOR)."""
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    y = (x.prod(1) > 0).long()
    features, labels = {"train": x, "val": x}, {"train": y, "val": y}
    assert fit_head(build_head(2, [], 2), features, labels).val_acc < 0.7
    assert fit_head(build_head(2, [32], 2), features, labels).val_acc > 0.95


@pytest.mark.parametrize("setting", ["model.weights=none", "model.rest=scratch"])
def test_random_layers_are_not_probed(small: list[str], setting: str) -> None:
    depth = "model.freeze_depth=0"
    with pytest.raises(Refused, match=f"model.head.init=probe with {setting} would fit the head to features of random"):
        compose_config([*small, depth, "model.head.init=probe", setting])


@pytest.mark.parametrize("depth", [3, pytest.param(0, marks=pytest.mark.slow)])
def test_a_trial_starts_from_its_probe_whether_features_are_stored_or_not(
    small: list[str], tmp_path: Path, depth: int
) -> None:
    words = [*small, f"model.freeze_depth={depth}", "model.head.init=probe", "augment.flip=0.5", "optim.lr=1e-9"]
    stored, computed = (
        train(compose_config([*words, f"cache.mode={mode}", f"cache.dir={tmp_path}", f"out={tmp_path / mode}"]), words)
        for mode in ("on", "off")
    )
    assert outcome(stored) == outcome(computed)
    assert stored.probe_val_acc is not None
    assert stored.val_acc_best == stored.probe_val_acc  # nothing moves at this learning rate
    assert 0 < stored.seconds["probe"] < stored.seconds["total"]
    assert Result.load(tmp_path / "on").figures()["probe/val_acc"] == stored.probe_val_acc


def test_a_sweep_stores_the_features_once_and_they_are_those_of_the_head_alone(
    small: list[str], tmp_path: Path
) -> None:
    cache = f"cache.dir={tmp_path}"
    probing = compose_config([*small, "model.freeze_depth=3", "model.head.init=probe", cache])
    facts = prepare([(probing, 2), (compose_config([*small, "model.freeze_depth=all", cache]), 3)], stores=True)
    images, weights, cut = open_images(probing, facts)
    features = pretrained_features(probing, images, weights, preprocess_of(probing, weights), facts)
    assert {split: len(rows) for split, rows in features.items()} == {"train": 24, "val": 12}
    assert sum(choice.used for choice in facts.stores.values()) >= 2
    del cut, images

    again, _, _ = open_images(probing, Facts())
    alone = pretrained_features(probing, again, weights, preprocess_of(probing, weights), Facts())
    assert all(torch.equal(features[split], alone[split]) for split in features)
