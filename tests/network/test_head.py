import pytest
import torch
from torch import nn

from finetune.network.head import build_head


@pytest.mark.parametrize("hidden", [[], [256], [512, 256]])
def test_widths_follow_hidden(hidden: list[int]) -> None:
    head = build_head(32, hidden, 10)
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == list(zip([32, *hidden], [*hidden, 10], strict=True))
    assert head(torch.randn(4, 32)).shape == (4, 10)


def test_an_empty_hidden_is_a_linear_layer() -> None:
    head = build_head(8, [], 3).eval()
    x, y = torch.randn(2, 8), torch.randn(2, 8)
    bias = head(torch.zeros(1, 8))
    torch.testing.assert_close(head(x + y), head(x) + head(y) - bias)


def test_dropout_precedes_every_dense_layer_and_the_activation_follows_all_but_the_last() -> None:
    names = [type(m).__name__ for m in build_head(8, [4], 3, dropout=0.5, activation="gelu")]
    assert names == ["Dropout", "Linear", "GELU", "Dropout", "Linear"]
