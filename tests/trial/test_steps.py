import csv
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn

from finetune.compose import compose_config
from finetune.network.network import Network
from finetune.records.layout import CHECKPOINT
from finetune.records.result import Result
from finetune.trial import steps
from finetune.trial.run import train
from finetune.trial.steps import Steps, _steps_on_gpu, steps_at_once


def head_alone(small: list[str], out: Path, *more: str) -> Result:
    words = [*small, "model.freeze_depth=all", "cache.mode=on", "model.head.hidden=[8]", "model.head.dropout=0.3"]
    words += ["data.batch_size=3", "logger=csv", "trainer.grad_clip=0.1", *more, f"out={out}"]
    return train(compose_config(words), words)


def logged(out: Path) -> list[dict[str, str]]:
    """What a logger was given, with its steps."""
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("most", [4, 32])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_several_steps_at_once_are_the_single_steps_to_the_bit(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, optimizer: str
) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    monkeypatch.setattr(steps, "_MOST", 1)
    first = head_alone(small, one, f"optim={optimizer}")
    monkeypatch.setattr(steps, "_MOST", most)
    second = head_alone(small, several, f"optim={optimizer}")

    assert first.history == second.history
    assert first.correct == second.correct
    expected, made = (safetensors.torch.load_file(out / CHECKPOINT) for out in (one, several))
    assert all(torch.equal(value, made[name]) for name, value in expected.items())
    assert logged(one) == logged(several)
    assert len(logged(one)) == len(first.history)


def test_weights_that_lightning_has_rounded_are_not_those_of_the_next_step(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does before 2.6: until a batch is over."""
    remembering = lambda plugin: torch.autocast(plugin.device, torch.bfloat16)  # noqa: E731
    monkeypatch.setattr(MixedPrecision, "autocast_context_manager", remembering)
    monkeypatch.setattr(steps, "_MOST", 1)
    one = head_alone(small, tmp_path / "one", "trainer.precision=bf16", "logger=none")
    monkeypatch.setattr(steps, "_MOST", 32)
    several = head_alone(small, tmp_path / "several", "trainer.precision=bf16", "logger=none")
    assert one.history == several.history


def test_a_batch_says_how_many_steps_it_makes() -> None:
    assert [Steps(images=8, of_epoch=4, at_once=2).in_batch(count) for count in (1, 8, 9, 32)] == [1, 1, 2, 4]


def test_a_head_whose_step_is_long_takes_one_at_a_time() -> None:
    small, large = nn.Linear(2048, 10), nn.Linear(2048, 8192)
    assert steps_at_once(small, 32) == 32
    assert steps_at_once(small, 1024) == 3
    assert steps_at_once(large, 32) == 1


def test_a_gpu_takes_several_steps_where_all_behind_the_cut_is_short() -> None:
    network = Network(nn.Identity(), nn.Sequential(nn.Linear(1024, 14_000, bias=False)), nn.Linear(2048, 10))
    assert [_steps_on_gpu(network, positions, 32) for positions in (1, 196, 3136)] == [32, 7, 1]
