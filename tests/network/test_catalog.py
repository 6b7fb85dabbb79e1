import pytest
import torch

from finetune.errors import Refused
from finetune.network.catalog import create, create_empty, create_shapes, default_size, torchvision_names


def test_an_empty_network_has_its_tables_and_nothing_else() -> None:
    model = create_empty("swin_t")
    assert all(value.is_meta for value in model.state_dict().values())
    assert not any(buffer.is_meta for name, buffer in model.named_buffers() if name not in model.state_dict())
    assert all(parameter.is_meta for parameter in create_shapes("regnet_y_400mf").parameters())


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(Refused, match=r"model\.backbone=resnet5O is not known; did you mean resnet50"):
        create("resnet5O")


def test_networks_have_their_own_sizes() -> None:
    assert (default_size("resnet50"), default_size("inception_v3"), default_size("cnn5")) == (224, 299, 224)
    assert "fcn_resnet50" not in torchvision_names()


def test_a_size_that_a_network_cannot_take_is_refused_with_its_own() -> None:
    with (
        torch.device("meta"),
        pytest.raises(Refused, match=r"vit_b_16 cannot take images of 100 x 100 .*data.size=224"),
    ):
        create("vit_b_16", 100)
