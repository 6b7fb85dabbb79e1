"""Steps as CUDA graphs, on a pretended GPU: the same as without to the bit, or not taken, with the reason."""

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.compose import compose_config
from finetune.errors import Interrupted
from finetune.records.result import Result
from finetune.trial import graphs, steps
from finetune.trial.graphs import GraphedSteps, StepGraph, checked_graph
from finetune.trial.module import FineTune
from finetune.trial.run import train
from tests.models import same_model, terminate_at
from tests.pretended_gpu import PretendedGpu, pretended_gpu
from tests.pretended_graphs import PretendedGraph, graphs_of

Recorded = list[PretendedGraph]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pretended_gpu() as one:
        # dropout draws from this generator, which a trial sets and saves as the GPU's
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: torch.set_rng_state(state))
        yield one


@pytest.fixture
def recorded(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setattr(graphs, "_WORTH", 4)
    with graphs_of(gpu) as found:
        yield found


def trial(small: list[str], out: Path, *more: str) -> Result:
    words = [*(word for word in small if "accelerator" not in word), "cache.mode=on", "data.batch_size=7"]
    words += ["trainer.grad_clip=0.1", "model.head.hidden=[8]", "model.head.dropout=0.3", *more, f"out={out}"]
    return train(compose_config(words), words)


@pytest.mark.parametrize(
    "settings",
    [
        ["model.freeze_depth=all", "trainer.precision=32"],
        ["model.freeze_depth=3", "trainer.precision=32", "optim.layer_decay=0.5"],
        pytest.param(["model.freeze_depth=3", "optim=sgd"], marks=pytest.mark.slow),
        pytest.param(["model.freeze_depth=all", "trainer.precision=bf16"], marks=pytest.mark.slow),
        pytest.param(
            ["model.freeze_depth=3", "model.frozen_bn=eval", "augment=strong", "cache.views=2"], marks=pytest.mark.slow
        ),
    ],
)
def test_a_trial_by_graphs_is_the_trial_without_to_the_bit(
    small: list[str], tmp_path: Path, recorded: Recorded, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    without = trial(small, tmp_path / "without", "trainer.graphs=off", *settings)
    assert recorded == []
    by_graph = trial(small, tmp_path / "by graph", *settings)
    (graph,) = recorded
    assert graph.replays > 4
    assert "steps are taken as a CUDA graph" in capsys.readouterr().out
    assert by_graph.history == without.history
    assert by_graph.correct == without.correct
    assert by_graph.key == without.key
    assert same_model(tmp_path / "without", tmp_path / "by graph")


@pytest.mark.parametrize("by_graph", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_several_steps_at_once_of_layers_behind_a_cut_are_the_single_steps_to_the_bit(
    small: list[str], tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, by_graph: bool
) -> None:
    settings = ["model.freeze_depth=3", "trainer.precision=32", f"trainer.graphs={'auto' if by_graph else 'off'}"]
    counts = list[int]()
    training_step = FineTune.training_step

    def count(module: FineTune, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        counts.append(index)
        rates = [group["lr"] for group in module.trainer.optimizers[0].param_groups]
        assert rates == torch.tensor(rates).tolist()  # as a graph reads them, also where there is none
        return training_step(module, batch, index)

    monkeypatch.setattr(FineTune, "training_step", count)
    monkeypatch.setattr(steps, "_MOST", 1)
    one = trial(small, tmp_path / "one", *settings)
    assert len(counts) == 2 * 4
    monkeypatch.setattr(steps, "_MOST", 3)
    several = trial(small, tmp_path / "several", *settings)
    assert len(counts) == 2 * 4 + 2 * 2
    assert len(recorded) == 2 * by_graph
    assert one.history == several.history
    assert same_model(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
def test_a_trial_that_was_stopped_goes_on_by_graphs(
    small: list[str], tmp_path: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["model.freeze_depth=3", "trainer.precision=32", "trainer.save_every=0", "trainer.epochs=3"]
    whole = trial(small, tmp_path / "whole", *settings)
    terminate_at(6, monkeypatch)  # in the second epoch, which a graph has taken
    with pytest.raises(Interrupted):
        trial(small, tmp_path / "stopped", *settings)
    again = trial(small, tmp_path / "stopped", *settings)
    assert again.history == whole.history
    assert len(recorded) == 3
    assert same_model(tmp_path / "whole", tmp_path / "stopped")


Take = Callable[[Tensor, Tensor], Tensor]


class Training:
    """A small network on the GPU that has taken a step, with a batch norm, dropout and AdamW."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        self.network = nn.Sequential(*layers).to("cuda")
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 0.125, fused=True)
        self.x, self.y = torch.randn(6, 4).to("cuda"), torch.tensor([0, 1, 0, 1, 1, 0]).to("cuda")
        self.step(self.x, self.y)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state(self) -> list[Tensor]:
        return GraphedSteps(self.step, self.optimizer, self.network)._changing()

    def checked(self, step: Take | None = None) -> tuple[StepGraph | None, str]:
        """The graph or the reason; in either case nothing has changed."""
        before = [tensor.clone() for tensor in self.state()]
        drawn, groups = torch.get_rng_state(), [dict(group) for group in self.optimizer.param_groups]
        found = checked_graph(step or self.step, self.optimizer, self.state(), self.x, self.y)
        assert all(torch.equal(one, other) for one, other in zip(before, self.state(), strict=True))
        assert torch.equal(drawn, torch.get_rng_state())
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            assert {**group, "params": 0} == {**values, "params": 0}
        assert all(parameter.grad is None for parameter in self.network.parameters())
        return found


def test_a_graph_that_was_checked_takes_the_same_steps_and_the_check_changes_nothing(recorded: Recorded) -> None:
    training, other = Training(), Training()
    assert len(training.state()) == 6 + 3 + 6 * 3  # parameters, statistics, AdamW's
    graph, why = training.checked()
    assert graph is not None
    assert why == ""
    assert graph.fits(training.x)
    assert not graph.fits(training.x[:4])

    losses = []
    for take in (graph, other.step):
        torch.manual_seed(1)
        losses.append([float(take(training.x, training.y)) for _ in range(3)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3
    assert all(torch.equal(one, same) for one, same in zip(training.state(), other.state(), strict=True))


def test_a_step_by_graph_is_four_launches_and_no_wait(gpu: PretendedGpu, recorded: Recorded) -> None:
    training = Training()
    graph, _ = training.checked()
    assert graph is not None
    before = gpu.counts.copy()
    graph(training.x, training.y)
    spent = gpu.counts - before
    assert (spent["kernels"], spent["copies"], spent["waits"]) == (3, 1, 0)  # batch, labels, the graph; and rates


class _KeepsBatch(StepGraph):
    """One that does not copy the batch to where the graph reads it."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return super().__call__(self._x, self._y)


@contextlib.contextmanager
def _keep_rates(rates: Tensor, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Numbers instead of what is read from memory."""
    (group,) = optimizer.param_groups
    group["capturable"] = True
    yield
    group["capturable"] = False


@pytest.mark.parametrize(("name", "bug"), [("StepGraph", _KeepsBatch), ("_rates_read_from", _keep_rates)])
def test_the_check_finds_what_a_graph_keeps(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, name: str, bug: object
) -> None:
    monkeypatch.setattr(graphs, name, bug)
    graph, why = Training().checked()
    assert graph is None
    assert why.startswith("steps by it differ by ")
    assert why.endswith(" from those without, which differ by 0")


def test_a_graph_needs_an_optimizer_that_can_be_recorded(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_rates_read_from", lambda rates, optimizer: contextlib.nullcontext())
    graph, why = Training().checked()
    assert graph is None
    assert "capturable is False" in why


def _draws(training: Training) -> Take:
    """A number that the program draws."""
    return lambda x, y: training.step(x * (1 + random.random()), y)


def _replaces(training: Training) -> Take:
    """A tensor that is made anew in each step instead of being changed."""
    kept = [torch.zeros((), device="cuda")]

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = training.step((x + kept[0]).relu(), y)
        kept[0] = loss
        return loss

    return step


def _looks(training: Training) -> Take:
    """The program waits for a loss."""

    def step(x: Tensor, y: Tensor) -> Tensor:
        loss = training.step(x, y)
        return loss if loss.item() > 0 else -loss

    return step


def _fails(training: Training) -> Take:
    def step(x: Tensor, y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    return step


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_draws, "which differ by 0"),
        (_replaces, "the same steps have losses that differ by"),
        (_looks, "operation not permitted when stream is capturing"),
        (_fails, "CUDA out of memory"),
    ],
)
def test_steps_that_no_graph_can_hold_are_taken_without(
    recorded: Recorded, build: Callable[[Training], Take], reason: str
) -> None:
    training = Training()
    graph, why = training.checked(build(training))
    assert graph is None
    assert reason in why


def test_steps_that_differ_among_themselves_may_differ_as_much_by_a_graph(recorded: Recorded) -> None:
    training = Training()
    drawn = random.Random(0)  # as kernels do that add in any order
    graph, why = training.checked(lambda x, y: training.step(x * (1 + 1e-6 * drawn.random()), y))
    assert graph is not None, why


def test_a_graph_is_made_once_after_a_batch_where_enough_steps_are_left(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training()
    whole, short = (training.x, training.y), (training.x[:3], training.y[:3])
    steps = GraphedSteps(training.step, training.optimizer, training.network)
    assert steps.take(*whole, left=4) is None
    steps.has_begun = True
    assert steps.take(*short, left=4) is None
    assert steps.take(*whole, left=3) is None
    assert recorded == []
    assert steps.take(*whole, left=4) is not None
    assert steps.take(*short, left=3) is None
    assert len(recorded) == 1
    assert capsys.readouterr().out == "steps are taken as a CUDA graph\n"

    tried = list[Any]()
    monkeypatch.setattr(graphs, "checked_graph", lambda *given: tried.append(given) or (None, "a reason"))
    steps = GraphedSteps(training.step, training.optimizer, training.network)
    steps.has_begun = True
    assert [steps.take(*whole, left=9) for _ in range(3)] == [None] * 3
    assert len(tried) == 1
    assert capsys.readouterr().out == "steps are taken without a CUDA graph: a reason\n"


def test_rates_are_numbers_that_a_graph_can_read() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    graphs.round_rates(optimizer)
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.1).item() != 0.1


def test_what_is_recorded_is_done_at_a_replay_alone(gpu: PretendedGpu) -> None:
    """The pretended graphs themselves."""
    x, total = torch.ones(2).to("cuda"), torch.zeros(2).to("cuda")
    with graphs_of(gpu):
        graph = PretendedGraph()
        with torch.cuda.graph(graph):  # type: ignore[arg-type]
            twice = x * 2
            total.add_(twice)
        assert (total.tolist(), twice.isnan().all().item()) == ([0, 0], True)
        for i in range(1, 3):
            x.fill_(i)
            graph.replay()
            assert twice.tolist() == [2 * i] * 2
        assert total.tolist() == [6, 6]

        with pytest.raises(RuntimeError, match="not permitted"), torch.cuda.graph(PretendedGraph()):  # type: ignore[arg-type]
            total.sum().item()
