"""fp16, for GPUs with tensor cores but without bf16, on a pretended one: the numbers are real."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

from finetune.compose import compose_config
from finetune.config import TrainerConfig
from finetune.errors import Interrupted, Refused
from finetune.network.device import Precision
from finetune.records.layout import CHECKPOINT, LAST
from finetune.records.result import Result
from finetune.trial import steps
from finetune.trial.run import train
from tests.models import same_model, terminate_at
from tests.pretended_gpu import H100, PretendedGpu, pretended_gpu

T4 = "Tesla T4"
SGD = ["optim=sgd", "optim.lr=0.05", "trainer.grad_clip=0.1"]
"""Unlike Adam's, its steps are as long as its gradients, which must be those of the loss that was not multiplied."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pretended_gpu(card=T4) as one:
        yield one


@pytest.fixture
def small_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are first multiplied by so little that no gradient overflows, and no step is left out."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**10))


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are first multiplied by so much that all gradients overflow, for as many steps as it is halved."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30))


def trial(small: list[str], out: Path, *more: str) -> Result:
    words = [*(word for word in small if "accelerator" not in word), "data.batch_size=3", "augment=strong"]
    words += ["trainer.epochs=3", *more, f"out={out}"]
    return train(compose_config(words), words)


@pytest.mark.parametrize(
    ("card", "name"),
    [
        (H100, "bf16"),
        (T4, "fp16"),
        ("Tesla V100-SXM2-16GB", "fp16"),
        ("NVIDIA GeForce RTX 2080 Ti", "fp16"),
        ("Quadro RTX 6000", "fp16"),
        ("NVIDIA GeForce GTX 1660 Ti", "32"),
        ("NVIDIA T400 4GB", "32"),
        ("Quadro T1000", "32"),
    ],
)
def test_auto_is_a_gpus_fastest_format_for_training(monkeypatch: pytest.MonkeyPatch, card: str, name: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pretended_gpu(card=card):
        assert Precision.of(TrainerConfig()).format == name


def test_fp16_is_refused_where_no_gpu_of_its_kind_is() -> None:
    with pytest.raises(Refused, match=r"trainer.precision=fp16 is for NVIDIA's and AMD's GPUs, and this is a CPU"):
        Precision.of(TrainerConfig(precision="fp16"))
    with pretended_gpu("mps"), pytest.raises(Refused, match="and this is Apple's GPU; set it to auto"):
        Precision.of(TrainerConfig(precision="fp16"))


@pytest.mark.usefixtures("gpu", "small_enough")
@pytest.mark.parametrize("stored", ["on", pytest.param("off", marks=pytest.mark.slow)])
def test_a_trial_learns_what_it_learns_in_32_bits(small: list[str], tmp_path: Path, stored: str) -> None:
    settings = [*SGD, f"cache.mode={stored}", "cache.views=2", f"cache.dir={tmp_path / 'cache'}"]
    half = trial(small, tmp_path / "16", *settings)
    full = trial(small, tmp_path / "32", *settings, "trainer.precision=32")
    assert (half.status, half.device, half.precision) == ("complete", T4, "fp16")
    assert full.precision == "32"

    for ours, theirs in zip(half.history, full.history, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=2e-3)
    before, after = full.history[0]["train/loss"], full.history[-1]["train/loss"]
    assert abs(before - after) > 1e-2 * before  # or steps of no length would agree as well


@pytest.mark.usefixtures("gpu", "too_large")
def test_steps_whose_gradients_overflow_are_left_out(small: list[str], tmp_path: Path) -> None:
    whole = trial(small, tmp_path / "whole", *SGD, "trainer.precision=fp16")
    assert whole.status == "complete"
    made = safetensors.torch.load_file(tmp_path / "whole" / CHECKPOINT)
    assert all(torch.isfinite(value).all() for value in made.values())
    assert whole.history[-1]["train/loss"] < whole.history[0]["train/loss"]


@pytest.mark.usefixtures("gpu", "too_large")
@pytest.mark.parametrize("clip", ["null", "0.1"])
def test_several_steps_at_once_are_the_single_steps_to_the_bit(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    settings = ["model.freeze_depth=all", "cache.mode=on", "cache.views=2", f"trainer.grad_clip={clip}"]
    found = []
    for most in (1, 4):
        monkeypatch.setattr(steps, "_MOST", most)
        found.append(trial(small, tmp_path / str(most), *settings))
    assert found[0].history == found[1].history
    assert same_model(tmp_path / "1", tmp_path / "4")


@pytest.mark.slow
@pytest.mark.usefixtures("gpu", "too_large")
def test_an_interrupted_trial_goes_on_with_what_it_multiplied_by(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["trainer.save_every=0", *SGD]
    whole = trial(small, tmp_path / "whole", *settings)

    terminate_at(6, monkeypatch)
    with pytest.raises(Interrupted):
        trial(small, tmp_path / "stopped", *settings)
    assert (tmp_path / "stopped" / LAST).exists()
    again = trial(small, tmp_path / "stopped", *settings)
    assert again.history == whole.history
    assert same_model(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.usefixtures("gpu")
def test_a_loss_that_overflows_names_the_format(small: list[str], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"or set trainer.precision=32: fp16 has no numbers above 65,504"):
        trial(small, tmp_path / "trial", "optim=sgd", "optim.lr=1e6", "trainer.precision=fp16")
