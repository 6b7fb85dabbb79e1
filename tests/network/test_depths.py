import pytest
import torchvision

from finetune.errors import Refused
from finetune.network.backbone import backbone_shapes
from finetune.network.depths import depth_of, depth_row, depth_table, stage_of
from finetune.network.freeze import find_cut


def test_depth_table_of_resnet50() -> None:
    rows = depth_table(backbone_shapes("resnet50", 224), "block", 224)
    assert [row.k for row in rows] == list(range(18))
    everything = sum(p.numel() for p in torchvision.models.resnet50().parameters())
    assert rows[-1].parameters == everything - (2048 + 1) * 1000
    # shares of forward multiply-adds and sizes of activations as in the design's measurements
    at = {row.name: row for row in rows}
    shares = {"stem": 0.03, "layer1.2": 0.19, "layer2.3": 0.44, "layer3.5": 0.80, "layer4.2": 1.0}
    assert {name: round(at[name].flop_share, 2) for name in shares} == shares
    assert [at[name].shape for name in ("stem", "layer1.2", "layer3.5", "layer4.2")] == [
        (64, 56, 56),
        (256, 56, 56),
        (1024, 14, 14),
        (2048,),
    ]
    assert at["layer2.3"].same == {"block": "8", "stage": "3", "layer": "24", "tensor": "72"}
    hundred = depth_table(backbone_shapes("resnet50", 224), "tensor", 224)[100]
    assert (hundred.name, hundred.same["block"]) == ("layer3.2.conv3.weight", "10+")


def test_a_share_is_rounded_to_the_nearest_cut() -> None:
    backbone = backbone_shapes("resnet50", 224)
    for share, block in ((0, 0), (0.02, 0), (0.5, 8), (0.53, 9), (1, 17), ("all", 17)):
        in_shares, in_blocks = find_cut(backbone, share, "share"), find_cut(backbone, block, "block")
        assert (in_shares.modules, in_shares.frozen) == (in_blocks.modules, in_blocks.frozen)
    assert depth_of(backbone, "all", "share")[0] == 1
    assert depth_row(backbone, 0.5, "share", 224).name == "layer2.3"
    assert [row.k for row in depth_table(backbone, "share", 224)][8] == pytest.approx(8 / 17, abs=1e-3)
    with pytest.raises(
        Refused, match=r"freeze_depth=1.5 is out of range for resnet50 in shares of the blocks; give 0..1"
    ):
        find_cut(backbone, 1.5, "share")


@pytest.mark.parametrize(
    ("unit", "stage"),
    [
        ("stem", "stem"),
        ("layer3.2", "layer3"),
        ("features.5.1", "features.5"),
        ("stages.2.blocks.0", "stages.2"),
        ("encoder.layers.encoder_layer_7", "encoder.layers.encoder_layer_7"),
    ],
)
def test_a_stage_is_the_path_up_to_its_number(unit: str, stage: str) -> None:
    assert stage_of(unit) == stage
