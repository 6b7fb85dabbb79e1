from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from finetune.compose import compose_config
from finetune.data.balance import class_weights
from finetune.errors import Refused
from finetune.network.network import Network
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from finetune.trial.module import FineTune
from tests.models import adamw


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.random.default_rng(0).choice(4, size=300, p=[0.6, 0.2, 0.15, 0.05])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert class_weights("balanced", labels, list("abcd")) == pytest.approx(expected.tolist())
    assert class_weights("none", labels, list("abcd")) is None
    assert class_weights([1, 2, 3, 4], labels, list("abcd")) == [1, 2, 3, 4]


def test_the_weighted_loss_is_that_of_pytorch() -> None:
    x, y = torch.randn(8, 3), torch.tensor([0, 1, 1, 2, 0, 0, 2, 1])
    module = FineTune(
        Network(nn.Identity(), nn.Identity(), nn.Identity()),
        adamw,
        label_smoothing=0.1,
        class_weights=[1.0, 2.0, 5.0],
    )
    expected = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.1)(x, y)
    assert float(module.training_step((x, y), 0)) == pytest.approx(float(expected))
    module._evaluate("val", module.val_figures, (x, y))
    assert module.val_figures.compute()["loss"] == pytest.approx(float(F.cross_entropy(x, y)))


@pytest.mark.parametrize("value", ["balance", "[]", "[1,0,2]", "[1,-1]", "[a,b]", "3", "[true,false]", "null"])
def test_what_is_no_class_weight_is_refused(value: str) -> None:
    with pytest.raises(Refused, match=r"data.class_weights=.* is not known; give none, balanced, or a list"):
        compose_config(["experiment=embedded", f"data.class_weights={value}"])


def test_as_many_weights_as_classes_are_needed(small: list[str]) -> None:
    sentence = r"data.class_weights has 2 numbers, but there are 3 classes: class0, class1, class2; give one for each"
    with pytest.raises(Refused, match=sentence):
        open_images(compose_config([*small, "data.class_weights=[1,2]"]), Facts())


def test_no_roc_curve_of_one_class(small: list[str], images: Path) -> None:
    for label in (1, 2):
        for file in (images / "val" / f"class{label}").iterdir():
            file.unlink()
    with pytest.raises(Refused, match=r"trainer.metric=val/auroc .* all validation images are of class0; add images"):
        open_images(compose_config([*small, "trainer.metric=val/auroc"]), Facts())
