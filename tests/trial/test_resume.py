import os
import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from finetune.records.layout import LAST
from finetune.trial.resume import Unfinished

WHOSE = {"key": "0123456789ab", "torch": "2"}
RANDOM = torch.Generator().manual_seed(0)
STATE = Unfinished(
    {
        "weight": torch.randn(3, 4, generator=RANDOM),
        "count": torch.tensor(7),
        "random.cpu": RANDOM.get_state(),
        "none": torch.empty(0),
    },
    {"epoch": 2, "batches": 5, "seconds": 1.25, "history": [{"val/acc": 0.1 + 0.2}], "stopping": [[0, float("-inf")]]},
)


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    STATE.save(tmp_path, WHOSE)
    again = Unfinished.load(tmp_path, WHOSE)
    assert again is not None
    assert again.tensors.keys() == STATE.tensors.keys()
    assert all(torch.equal(value, again.tensors[name]) for name, value in STATE.tensors.items())
    assert again.values == {**STATE.values, "trial": WHOSE}
    assert (again.epoch, again.batches, again.seconds) == (2, 5, 1.25)


def test_no_state_is_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Unfinished.load(tmp_path, WHOSE) is None
    assert capsys.readouterr().err == ""


def test_a_state_of_something_else_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    STATE.save(tmp_path, WHOSE)
    assert Unfinished.load(tmp_path, {**WHOSE, "torch": "3"}) is None
    assert "it belongs to another trial, or its data, weights or torch have changed" in capsys.readouterr().err


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_no_byte_of_it_can_be_damaged_unnoticed_and_nothing_is_unpickled(tmp_path: Path) -> None:
    STATE.save(tmp_path, WHOSE)
    whole = (tmp_path / LAST).read_bytes()
    for at in (*range(64), *range(64, len(whole), 97)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            (tmp_path / LAST).write_bytes(damaged)
            assert Unfinished.load(tmp_path, WHOSE) is None, (at, bit)
    for data in (b"", b"\n", whole[:-1], whole[: len(whole) // 2], pickle.dumps(Bomb(tmp_path / "ran"))):
        (tmp_path / LAST).write_bytes(data)
        assert Unfinished.load(tmp_path, WHOSE) is None
    torch.save({"weight": Bomb(tmp_path / "ran")}, tmp_path / LAST)
    assert Unfinished.load(tmp_path, WHOSE) is None
    assert not (tmp_path / "ran").exists()


def test_lightning_is_one_that_going_on_was_tried_with() -> None:
    """`_restore_position` sets what Lightning's loops count; raise the bound in pyproject.toml after trying another."""
    tried = ("2.5.", "2.6.")
    assert pl.__version__.startswith(tried)
    bounds = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "pytorch-lightning>=2.5,!=2.6.2,!=2.6.3,<2.7" in bounds
