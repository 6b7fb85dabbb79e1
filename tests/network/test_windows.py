from pathlib import Path

import pytest
import torch

from finetune.compose import compose_config
from finetune.config import Config, flat, key_of
from finetune.errors import Refused
from finetune.network.backbone import backbone_shapes, build_backbone
from finetune.network.checkpoint import load_checkpoint
from finetune.network.freeze import find_cut
from finetune.network.parts import split_at
from finetune.records.layout import CHECKPOINT
from finetune.records.result import outcome
from finetune.trial.run import train


def test_a_window_trains_its_units_and_nothing_else() -> None:
    backbone = build_backbone("resnet18")
    cut = find_cut(backbone, "all", "block", train_units=[3, 5])
    names = list(backbone.units)[3:5]
    trained = {name for name, _ in backbone.model.named_parameters()} - cut.frozen
    assert trained == {
        name for name, _ in backbone.model.named_parameters() if name.startswith(tuple(f"{n}." for n in names))
    }
    assert (cut.freeze_depth, cut.modules) == (3, 3)
    assert cut.prefix == find_cut(backbone, 3, "block").prefix  # so it shares the stores of freeze depth 3

    _, suffix = split_at(backbone, cut)
    suffix.train()
    training = {name for name, module in backbone.model.named_modules() if name.endswith("bn1") and module.training}
    assert training == {f"{name}.bn1" for name in names}


@pytest.mark.parametrize("unit", ["block", "stage", "layer", "tensor"])
def test_a_window_to_the_end_is_a_freeze_depth(unit: str) -> None:
    backbone = backbone_shapes("resnet18")
    deepest = {"block": 9, "stage": 5, "layer": 20, "tensor": 60}[unit]
    assert find_cut(backbone, "all", unit, train_units=[3, deepest]) == find_cut(backbone, 3, unit)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ["model.train_units=[3,3]"],
            "model.train_units=[3, 3] is no window; give the first unit that trains and the one",
        ),
        (["model.train_units=[3]"], "model.train_units=[3] is no window"),
        (
            ["model.train_units=[1,2]", "model.freeze_depth=1"],
            "the window itself says what is frozen; leave model.freeze",
        ),
        (["model.train_units=[1,2]", "model.freeze_unit=share"], "in blocks, stages, layers or tensors"),
        (["model.train_units=[-1,2]"], "model.train_units=-1 is out of range"),
    ],
)
def test_what_is_no_window_is_refused(small: list[str], settings: list[str], sentence: str) -> None:
    with pytest.raises(Refused) as refusal:
        compose_config([*small, "model.freeze_depth=all", *settings])
    assert sentence in str(refusal.value)


def test_a_window_beyond_the_network_is_refused() -> None:
    with pytest.raises(
        Refused, match=r"\[3, 10\] is out of range for resnet18 in blocks; give \[a,b\] with 0 <= a < b <= 9"
    ):
        find_cut(backbone_shapes("resnet18"), "all", "block", train_units=[3, 10])


def test_a_trial_changes_its_window_alone_stored_or_not_and_its_checkpoint_stands_on_the_rest(
    small: list[str], tmp_path: Path
) -> None:
    words = [*small, "model.freeze_depth=all", "model.train_units=[2,4]", "optim.lr=0.01"]
    stored, computed = (
        train(compose_config([*words, f"cache.mode={mode}", f"cache.dir={tmp_path}", f"out={tmp_path / mode}"]), words)
        for mode in ("on", "off")
    )
    assert outcome(stored) == outcome(computed)
    assert stored.freeze_depth == 2

    network, _ = load_checkpoint(tmp_path / "on" / CHECKPOINT)
    weights = torch.load(next(word for word in small if "weights=" in word).partition("=")[2], weights_only=True)
    units = [*network.prefix, *network.suffix][:5]
    changed = {
        i for i, unit in enumerate(units) if not torch.equal(unit.conv.weight, weights[f"conv{i + 1}.conv.weight"])
    }
    still = {
        i for i, unit in enumerate(units) if torch.equal(unit.bn.running_mean, weights[f"conv{i + 1}.bn.running_mean"])
    }
    assert (changed, still) == ({2, 3}, {0, 1, 4})


def test_trials_of_before_keep_their_keys() -> None:
    settings = flat(Config())
    assert key_of(settings) == key_of({key: value for key, value in settings.items() if key != "model.train_units"})
