"""What a file holds beside a network is left out and said; what belongs to a larger network of its kind is not."""

from pathlib import Path

import pytest
import torch

from finetune.errors import Refused
from finetune.network.backbone import backbone_shapes, build_backbone
from finetune.network.weights import read_weights
from tests.network.test_backbone import scrambled


def test_another_head_is_left_out_and_said(tmp_path: Path) -> None:
    backbone = build_backbone("cnn5")
    state = {**scrambled(backbone), "projector.0.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "w.pth")
    weights = read_weights(backbone, str(tmp_path / "w.pth"))
    assert weights.state.keys() == scrambled(backbone).keys()
    assert weights.note.endswith("not cnn5's and left out: projector.0.weight, head.bias")


def test_a_deeper_network_of_the_same_kind_is_not_taken_for_a_shallower_one(tmp_path: Path) -> None:
    torch.save(scrambled(build_backbone("narrow_resnet50")), tmp_path / "w.pth")
    more = {**scrambled(build_backbone("narrow_resnet50")), "layer3.6.conv1.weight": torch.zeros(64, 256, 1, 1)}
    torch.save({"teacher": {f"backbone.{name}": value for name, value in more.items()}}, tmp_path / "deeper.pth")
    shapes = backbone_shapes("narrow_resnet50")
    assert read_weights(shapes, str(tmp_path / "w.pth")).note == ""
    with pytest.raises(
        Refused, match=r"has unknown layer3\.6\.conv1\.weight \(nearest to it are those under 'teacher'"
    ):
        read_weights(shapes, str(tmp_path / "deeper.pth"))


@pytest.mark.slow
def test_positions_of_a_vit_are_resampled_for_another_size(tmp_path: Path) -> None:
    torch.save(build_backbone("vit_b_32", empty=False).model.state_dict(), tmp_path / "w.pth")
    weights = read_weights(backbone_shapes("vit_b_32", 96), str(tmp_path / "w.pth"))
    assert weights.state["encoder.pos_embedding"].shape == (1, 1 + 3 * 3, 768)


def test_weights_of_timm_that_cannot_be_had_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("timm")

    def no_network(repository: str, file: str, revision: str | None) -> str:
        raise OSError(f"no network for {repository}")

    monkeypatch.setattr(hub, "hf_hub_download", no_network)
    with pytest.raises(Refused, match=r"no network for timm/test_vit3\.r160_in1k\); give model\.weights=PATH"):
        read_weights(backbone_shapes("timm/test_vit3"), "pretrained")
