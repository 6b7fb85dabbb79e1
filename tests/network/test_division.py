import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from finetune.network.division import Division, divide
from finetune.network.trace import NotCuttable


class Block(nn.Module):
    """Two weights, which stay together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.relu(self.norm(self.conv(x))))


class Stage(nn.Module):
    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Network(nn.Module):
    """A bit of all there is: a stem, two stages, a token that stands outside of modules, a count of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.one, self.two = Stage(8, 2), Stage(8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 5))

    def forward(self, x: Tensor, masked: bool = False) -> Tensor:
        assert not masked
        x = self.conv(x) + self.token
        images, _, height, _ = x.shape
        x = self.two(self.one(x)).reshape(images, 8, height, -1)
        return self.head(self.norm(x).mean((2, 3)))


def parts(division: Division, model: nn.Module) -> list[nn.Module]:
    return [part.of(model) for part in (*division.units, division.rest)]


def test_units_are_the_stem_and_the_blocks_and_the_rest_leads_to_the_features() -> None:
    division = divide(Network().eval(), 32)
    assert [unit.name for unit in division.units] == ["stem", "one.blocks.0", "one.blocks.1"] + [
        f"two.blocks.{i}" for i in range(3)
    ]
    assert (division.classifier, division.width) == ("head.1", 8)

    torch.manual_seed(0)
    model = Network().eval()
    modules = parts(division, model)
    assert modules[2] is model.one.blocks[1], "a block is the network's own"
    x = torch.randn(5, 3, 32, 32)
    model.head[1] = nn.Identity()
    assert torch.equal(nn.Sequential(*modules)(x), model(x))

    held = [parameter for module in modules for parameter in module.parameters()]
    assert len(held) == len({*held}) == len(list(model.parameters()))
    assert "token" in dict(modules[0].named_parameters())
    assert "norm.weight" in dict(modules[-2].named_parameters()), "a norm belongs to the unit before it"


def test_what_crosses_beside_one_tensor_makes_a_coarser_unit() -> None:
    class Skip(Network):
        def forward(self, x: Tensor, masked: bool = False) -> Tensor:
            x = self.conv(x) + self.token
            return self.head(self.norm(self.two(self.one(x)) + x).mean((2, 3)))

    division = divide(Skip().eval(), 32)
    assert [unit.name for unit in division.units] == ["stem", "one.blocks.0"]


def test_a_tensor_that_is_written_to_later_is_no_cut() -> None:
    class Writes(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            y = self[1](x.relu_())
            return self[2](y.add_(1))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Writes(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
            self.act, self.last = nn.ReLU(inplace=True), Block(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.inner(x))).flatten(2).mean(2)

    model = Whole().eval()
    modules = parts(divide(Whole().eval(), 16), model)
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    for module in modules:
        before = x.clone()
        after = module(x)
        assert torch.equal(x, before)
        x = after
    assert torch.equal(x, expected)


def test_what_cannot_be_traced_or_gives_no_features_says_so() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if x.sum() > 0 else -x)

    with pytest.raises(NotCuttable, match="control flow"):
        divide(Holds().eval(), 16)
    with pytest.raises(NotCuttable, match="it gives 4 x 12 x 12 values for an image"):
        divide(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval(), 16)


def test_of_blocks_that_differ_in_stochastic_depth_alone_one_is_run() -> None:
    runs = list[Tensor]()

    class Dropping(Block):
        def __init__(self, chance: float) -> None:
            super().__init__(8)
            self.drop = StochasticDepth(chance, "row")

        def forward(self, x: Tensor) -> Tensor:
            runs.append(x)
            return x + self.drop(self.last(self.norm(self.conv(x))))

    blocks = nn.Sequential(*map(Dropping, (0.0, 0.1, 0.2)))
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert len(divide(model.eval(), 32).units) == 4
    assert [x.shape for x in runs] == [(2, 8, 8, 8)]
