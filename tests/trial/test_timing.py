"""What is measured is what runs: every unit once, in the budget that it is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.decode import Transform
from finetune.gpu import CPU
from finetune.network.backbone import backbone_shapes
from finetune.network.device import Precision
from finetune.trial import timing
from finetune.trial.timing import time_decoding, time_units


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_every_unit_is_timed_and_no_more_images_than_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    batches, seconds_of_units = list[int](), timing.__dict__["_seconds_of_units"]

    def counting(units: torch.nn.Sequential, x: torch.Tensor, precision: Precision, learn: bool) -> list[float]:
        batches.append(len(x))
        found: list[float] = seconds_of_units(units, x, precision, learn)
        return found

    monkeypatch.setattr(timing, "_seconds_of_units", counting)
    units = time_units("cnn5", 32, 8, Precision(CPU, dtype), budget=60)
    assert len(units.frozen) == len(units.trained) == len(backbone_shapes("cnn5", 32).modules)
    assert min(*units.frozen, *units.trained, units.optimizer) > 0
    assert batches[-1] == 8

    batches.clear()
    time_units("cnn5", 32, 8, Precision(CPU, dtype), budget=0.0)
    assert batches[-2:] == [2, 2]  # one pass of each, of as few images as BatchNorm takes


def test_images_are_decoded_from_all_over_the_set_and_broken_ones_left_out(tmp_path: Path) -> None:
    for i in range(100):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(100)]
    for path in paths[:50]:
        path.write_bytes(b"broken")
    transform = Transform(8, "squash", "bilinear")
    assert time_decoding(paths, transform, budget=60) > 0
    assert time_decoding(paths[:50], transform, budget=60) == 0
