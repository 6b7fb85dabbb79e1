from pathlib import Path

import pytest

from finetune.compose import compose_config
from finetune.errors import Refused
from finetune.sharing.gpu_share import trials_a_gpu
from finetune.sharing.prepare import prepare
from finetune.sweep.launch import per_gpu_of
from tests.pretended_gpu import pretended_gpu

GIB = 2**30


@pytest.mark.parametrize(
    ("more", "memory", "expected"),
    [
        ([["model.freeze_depth=all"]], 80 * GIB, 4),
        ([["model.freeze_depth=all"], ["model.freeze_depth=all", "optim.lr=0.1"]], 7 * GIB, 3),
        ([["model.freeze_depth=all"]], GIB, 1),
        ([["model.freeze_depth=all"], ["model.freeze_depth=3"]], 80 * GIB, 1),
        ([["model.freeze_depth=all", "cache.mode=off"]], 80 * GIB, 1),
        ([["model.freeze_depth=all", "augment=strong"]], 80 * GIB, 1),
        ([["model.freeze_depth=all", "augment=strong", "cache.views=2"]], 80 * GIB, 4),
    ],
)
def test_heads_alone_share_a_gpu_as_its_memory_allows(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[list[str]], memory: int, expected: int
) -> None:
    words = [word for word in small if "accelerator" not in word and "freeze_depth" not in word]
    configs = [compose_config([*words, *extra]) for extra in more]
    facts = prepare([(config, 0) for config in configs], stores=False)
    assert facts.trials_per_gpu == 1  # there is none

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pretended_gpu(memory=memory):
        assert trials_a_gpu(configs, facts) == expected


def test_nothing_known_shares_nothing() -> None:
    assert trials_a_gpu([], prepare([], stores=False)) == 1


def test_the_choice_is_auto_or_a_number() -> None:
    assert [per_gpu_of(text) for text in ("auto", "1", "12")] == [None, 1, 12]
    for wrong in ("0", "-1", "two", "1.5", ""):
        with pytest.raises(Refused, match=r"--trials-per-gpu .*: give auto, or a number from 1"):
            per_gpu_of(wrong)
