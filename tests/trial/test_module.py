import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from finetune.config import HeadConfig, ModelConfig, OptimConfig
from finetune.network.backbone import backbone_shapes
from finetune.network.freeze import find_cut
from finetune.network.network import Network, build_network
from finetune.network.weights import read_weights
from finetune.trial.module import FineTune, constant, cosine
from finetune.trial.trainer import build_module
from tests.models import adamw, plain_trainer

X, Y = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


BACKBONE = backbone_shapes("narrow_resnet50")


def network(depth: int | str, unit: str = "block", frozen_bn: str = "eval", hidden: tuple[int, ...] = ()) -> Network:
    torch.manual_seed(0)
    head = HeadConfig(hidden=list(hidden))
    model = ModelConfig("narrow_resnet50", "SHAPES60_V1", depth, unit, frozen_bn=frozen_bn, head=head)
    weights = read_weights(BACKBONE, model.weights)
    return build_network(model, weights, find_cut(BACKBONE, depth, unit, frozen_bn), classes=3)


def fitted(parts: Network, epochs: int = 1, optim: OptimConfig | None = None) -> FineTune:
    module = build_module(parts, optim or OptimConfig(lr=0.01, warmup=0))
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)
    trainer = plain_trainer(epochs)
    trainer.fit(module, batches, batches)
    return module


DEPTHS = [(5, "block"), ("all", "block"), (2, "stage"), (7, "layer"), (100, "tensor")]


@pytest.mark.parametrize(("depth", "unit"), DEPTHS)
def test_the_frozen_part_is_bit_equal_after_training_and_the_rest_is_not(depth: int | str, unit: str) -> None:
    parts = network(depth, unit)
    whole = {**state_of(parts)}
    before = {name: value.clone() for name, value in whole.items()}
    fitted(parts)
    after = state_of(parts)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    frozen_part = find_cut(BACKBONE, depth, unit).frozen_part
    assert not changed & frozen_part
    moving = {name for name in after if not name.endswith("num_batches_tracked")} - frozen_part
    assert moving <= changed


def state_of(parts: Network) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by the backbone's own names, the head's under `head.`."""
    units = ["stem", *(f"layer{s}.{b}" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(n))]
    parts_in_order = [m for part in (parts.prefix, parts.suffix) for m in part if any(True for _ in m.parameters())]
    state = {}
    for unit, module in zip(units, parts_in_order, strict=True):
        start = "" if unit == "stem" else f"{unit}."
        state |= {f"{start}{name}": value for name, value in module.state_dict().items()}
    return state | {f"head.{name}": value for name, value in parts.head.state_dict().items()}


@pytest.mark.parametrize(
    ("depth", "unit"),
    [DEPTHS[0], DEPTHS[-1], *(pytest.param(*depth, marks=pytest.mark.slow) for depth in DEPTHS[1:-1])],
)
def test_the_optimizer_holds_what_trains_and_nothing_frozen(depth: int | str, unit: str) -> None:
    parts = network(depth, unit)
    module = fitted(parts)
    optimizer = module.trainer.optimizers[0]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in parts_named(parts)}
    assert {names[i] for i in held} == {name for name, _ in parts_named(parts)} - find_cut(BACKBONE, depth, unit).frozen
    assert all(p.grad is None for name, p in parts_named(parts) if name in find_cut(BACKBONE, depth, unit).frozen)


def parts_named(parts: Network) -> list[tuple[str, nn.Parameter]]:
    state = state_of(parts)
    tensors = {v.data_ptr(): n for n, v in state.items() if v.numel()}
    both = nn.ModuleList([parts.prefix, parts.suffix, parts.head])
    return [(tensors[p.data_ptr()], p) for p in both.parameters()]


def test_frozen_bn_stats_moves_statistics_only_and_train_moves_the_affine_part_too() -> None:
    for policy, moving in (("stats", {"running_mean"}), ("train", {"running_mean", "weight"})):
        parts = network(5, "block", policy)
        before = {name: value.clone() for name, value in state_of(parts).items()}
        fitted(parts)
        after = state_of(parts)
        stem = [name for name in after if name.startswith("bn1.")]
        changed = {name.removeprefix("bn1.") for name in stem if not torch.equal(after[name], before[name])}
        assert changed & {"running_mean", "weight"} == moving
        assert torch.equal(after["conv1.weight"], before["conv1.weight"])


class KeepsTable(nn.Linear):
    """Keeps its weight while it evaluates, until it is told to train, as timm's LeViT keeps what attention adds."""

    kept: torch.Tensor | None = None

    def train(self, mode: bool = True) -> "KeepsTable":
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return super().forward(x)
        if self.kept is None:
            self.kept = self.weight.detach().clone()
        return F.linear(x, self.kept, self.bias)


def test_each_validation_is_of_the_weights_of_its_epoch() -> None:
    """Also where a layer keeps a table of them, which Lightning does not tell it to forget."""
    layer = KeepsTable(3 * 32 * 32, 8)
    module = fitted(Network(nn.Identity(), nn.Sequential(nn.Flatten(), layer), nn.Linear(8, 3)), epochs=2)
    layer.kept = None
    with torch.no_grad():
        expected = F.cross_entropy(module.network.eval()(X), Y)
    assert module.history[-1]["val/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_training_equals_a_plain_loop() -> None:
    """The suffix and head end where a hand-written PyTorch loop over the whole network ends, step for step."""
    parts = network(14)
    plain = nn.Sequential(*copy.deepcopy(nn.Sequential(*parts.prefix, *parts.suffix)), copy.deepcopy(parts.head))
    module = fitted(parts, epochs=2, optim=OptimConfig(lr=0.01, warmup=0, label_smoothing=0.1))
    frozen = len(parts.prefix)
    plain.requires_grad_(True)
    plain[:frozen].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=0.01, weight_decay=0.01)
    losses = []
    for step in range(6):
        plain.train()
        plain[:frozen].eval()
        optimizer.param_groups[0]["lr"] = 0.01 * cosine(step / 6, warmup=0)
        index = slice(step % 3 * 8, step % 3 * 8 + 8)
        loss = F.cross_entropy(plain(X[index]), Y[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert module.history[1]["train/loss"] == pytest.approx(sum(losses[3:]) / 3, rel=1e-5)
    for ours, theirs in zip(parts.head.parameters(), plain[-1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("limit", "factor"), [(None, 1.0), (0.5, 0.1), (9.0, 1.0)])
def test_gradients_are_clipped_together_to_a_norm(limit: float | None, factor: float) -> None:
    head = nn.Linear(2, 2)
    head.weight.grad, head.bias.grad = torch.full((2, 2), 2.0), torch.tensor([3.0, 0.0])  # of norm 5
    module = FineTune(Network(nn.Identity(), nn.Identity(), head), adamw)
    module.configure_gradient_clipping(torch.optim.SGD(head.parameters(), 0.1), limit)
    torch.testing.assert_close(head.weight.grad, torch.full((2, 2), 2.0 * factor))
    torch.testing.assert_close(head.bias.grad, torch.tensor([3.0 * factor, 0.0]))


def test_history_and_best_follow_the_validation_accuracy() -> None:
    module = fitted(network(14), epochs=3)
    assert [set(epoch) for epoch in module.history] == [
        {"epoch", "train/loss", "train/acc", "val/loss", "val/acc", "lr"}
    ] * 3
    accuracies = [epoch["val/acc"] for epoch in module.history]
    assert module.best_acc == max(accuracies)
    assert module.best_epoch == accuracies.index(max(accuracies))
    assert module.trainer.callback_metrics["val/acc_best"] == pytest.approx(module.best_acc)


def test_validation_figures_are_over_images_not_batches() -> None:
    parts = network("all")
    module = fitted(parts)
    module.eval()
    with torch.no_grad():
        logits = module(X)
    assert module.history[0]["val/acc"] == pytest.approx(float((logits.argmax(1) == Y).float().mean()), abs=1e-6)
    assert module.history[0]["val/loss"] == pytest.approx(float(F.cross_entropy(logits, Y)), rel=1e-5)


def test_trained_state_holds_what_trains_and_restores_it() -> None:
    module = fitted(network(100, "tensor"))
    network_ = module.network
    state = network_.trained_state()
    trained = {id(p) for p in network_.parameters() if p.requires_grad}
    assert {n for n, p in network_.named_parameters() if id(p) in trained} <= set(state)
    assert not any(n in state for n, p in network_.named_parameters() if id(p) not in trained)
    assert not any(name.startswith("prefix.") for name in state)
    fresh = network(100, "tensor")
    fresh.load_trained_state(state)
    torch.testing.assert_close(fresh.eval()(X), module.eval()(X), rtol=0, atol=0)
    with pytest.raises(ValueError, match="another network or freeze depth"):
        fresh.load_trained_state({name: state[name] for name in list(state)[1:]})


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(FloatingPointError, match=r"loss became nan in epoch 0; lower optim\.lr"):
        fitted(network(0), optim=OptimConfig(lr=1e30, warmup=0))


def test_schedules_warm_up_and_end() -> None:
    for shape, end in ((cosine, 0.0), (constant, 1.0)):
        factor = partial(shape, warmup=0.1)
        assert factor(0.05) == pytest.approx(0.5)
        assert factor(0.1) == pytest.approx(1.0)
        assert factor(1.0) == pytest.approx(end, abs=1e-9)
    assert cosine(0.55, warmup=0.1) == pytest.approx(0.5)
    assert cosine(0.0, warmup=0.0) == 1.0
