import pytest
import torch

from finetune.errors import Refused
from finetune.network.create import create, create_empty, create_shapes


def test_an_empty_network_has_its_tables_and_nothing_else() -> None:
    model = create_empty("swin_t")
    assert all(value.is_meta for value in model.state_dict().values())
    assert not any(buffer.is_meta for name, buffer in model.named_buffers() if name not in model.state_dict())
    assert all(parameter.is_meta for parameter in create_shapes("regnet_y_400mf").parameters())


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(Refused, match=r"model\.backbone=resnet5O is not known; did you mean resnet50"):
        create("resnet5O")


def test_an_unknown_name_of_timms_gets_the_nearest_one() -> None:
    pytest.importorskip("timm")
    with pytest.raises(Refused, match="timm/convnext_tiny2 is not known; did you mean convnext_tiny"):
        create("timm/convnext_tiny2")


def test_a_size_that_a_network_cannot_take_is_refused_with_its_own() -> None:
    with (
        torch.device("meta"),
        pytest.raises(Refused, match=r"vit_b_16 cannot take images of 100 x 100 .*data.size=224"),
    ):
        create("vit_b_16", 100)
