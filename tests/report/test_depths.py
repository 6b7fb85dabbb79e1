"""The file of depths is what the backbones say."""

import pytest
import torch

from finetune.config import BACKBONES, FREEZE_UNITS
from finetune.network.backbone import build_backbone
from finetune.network.depths import depth_table
from finetune.report.depths import SIZE, deepest, depths_of


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_file_of_depths_is_what_the_backbones_say(backbone: str) -> None:
    with torch.device("meta"):
        built = build_backbone(backbone)
    for unit in FREEZE_UNITS:
        rows = depth_table(built, unit, SIZE)
        found = depths_of(backbone, unit)
        assert found is not None, f"add {backbone} to finetune/report/depths.json"
        assert found.names == tuple(row.name for row in rows)
        assert found.parameters == pytest.approx([row.parameter_share for row in rows], abs=1e-4)
        assert found.flops == pytest.approx([row.flop_share for row in rows], abs=1e-4)
        assert deepest(backbone, unit) == rows[-1].k
        assert deepest("another", unit) == (1 if unit == "share" else None)
