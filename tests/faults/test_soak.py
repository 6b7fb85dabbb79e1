from pathlib import Path

import pytest

from tests.soak import Soak


@pytest.mark.slow
@pytest.mark.long
def test_two_sweeps_under_random_kills_lose_nothing(tmp_path: Path) -> None:
    soak = Soak(tmp_path, trials=9, epochs=2)
    assert soak.undisturbed.exitcode == 0
    for seed in range(2):
        figures = soak.run(f"seed{seed}", seed, kills=6)
        assert figures.kills >= 3, figures
        assert figures.of_coordinator >= 1, figures
        assert figures.sound(9), figures
