"""A training step as one CUDA graph, where the program takes longer to ask for its kernels than the GPU to run them.

What a graph must be given is in PyTorch's notes on CUDA semantics, "CUDA Graphs": it reads and writes the same memory
each time, so batches and learning rates are copied to where it reads them; nothing in it may wait for the GPU; and its
random numbers are those that the step would draw without it.
"""

import contextlib
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.errors import one_line

Step = Callable[[Tensor, Tensor], Tensor]
"""From a batch to its loss: all that a GPU does in a training step, the optimizer's part included."""

_WORTH = 200
"""Steps that must be left: making and checking a graph takes as long as some tens of them."""
_CHECKED = 3
"""Steps that a graph takes beside the same ones without it, before it is used."""
_NOISE = 10.0
"""Times the difference of equal steps from each other that a graph's may differ: a GPU may add in any order."""
_ROUNDING = 0.01
"""Share of a loss that this may come to; steps that differ by more remember something, which no graph does."""


class GraphedSteps:
    """The steps of a trial, taken as a graph once it has begun, where that pays and comes to the same."""

    def __init__(self, step: Step, optimizer: Optimizer, module: nn.Module):
        """`module` has all that a step changes, but for what the optimizer has."""
        self._step, self._optimizer, self._module = step, optimizer, module
        self._graph: StepGraph | None = None
        self._was_tried = False
        self._most_images = 0
        self.has_begun = False
        """Whether a batch is over: the optimizer has its state, and a trial that goes on is where it was."""

    def take(self, x: Tensor, y: Tensor, left: int) -> Tensor | None:
        """The loss of a step that was taken as a graph; None where it is to be taken without, as a last short batch is.

        Args:
            x: A batch.
            y: Its labels.
            left: How many steps are left, this one included.
        """
        self._most_images = max(self._most_images, len(y))
        if self.has_begun and not self._was_tried and len(y) == self._most_images and left >= _WORTH:
            self._was_tried = True
            self._graph, why = checked_graph(self._step, self._optimizer, self._changing(), x, y)
            print("steps are taken as a CUDA graph" if self._graph else f"steps are taken without a CUDA graph: {why}")
        return self._graph(x, y) if self._graph is not None and self._graph.fits(x) else None

    def _changing(self) -> list[Tensor]:
        trained = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        kept = [value for slots in self._optimizer.state.values() for value in slots.values()]
        return [*trained, *self._module.buffers(), *(value for value in kept if isinstance(value, Tensor))]


class StepGraph:
    """A step for batches of one shape."""

    def __init__(self, step: Step, optimizer: Optimizer, x: Tensor, y: Tensor):
        """Record `step` for batches like this one; nothing of it is done yet.

        The optimizer has taken a step before, so that its state is there; after it, that and the parameters may
        change in place alone.
        """
        self._optimizer = optimizer
        self._x, self._y = x.clone(), y.clone()
        self._rates = torch.zeros(len(optimizer.param_groups), device=x.device)
        self._graph = torch.cuda.CUDAGraph()

        optimizer.zero_grad()  # so that gradients get memory of the graph's own, and are written to instead of added
        mode = "thread_local"  # what other threads ask of CUDA meanwhile does no harm
        with _rates_read_from(self._rates, optimizer), torch.cuda.graph(self._graph, capture_error_mode=mode):
            self._loss = step(self._x, self._y)
        optimizer.zero_grad()

    def fits(self, x: Tensor) -> bool:
        """Whether it can take a step on a batch."""
        return x.shape == self._x.shape and x.dtype == self._x.dtype

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Take the step, with the rates that the optimizer has now; its loss is overwritten by the next."""
        self._x.copy_(x)
        self._y.copy_(y)
        rates = torch.tensor([group["lr"] for group in self._optimizer.param_groups], pin_memory=True)
        self._rates.copy_(rates, non_blocking=True)
        self._graph.replay()
        return self._loss


@contextlib.contextmanager
def _rates_read_from(rates: Tensor, optimizer: Optimizer) -> Iterator[None]:
    """Have the kernels of an optimizer's step read their learning rates from memory; a number would stay as it is."""
    groups = optimizer.param_groups
    before: list[dict[str, Any]] = [
        {key: group[key] for key in ("lr", "capturable") if key in group} for group in groups
    ]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:  # of AdamW
            group["capturable"] = True
    try:
        yield
    finally:
        for group, values in zip(groups, before, strict=True):
            group.update(values)


def round_rates(optimizer: Optimizer) -> None:
    """Round learning rates to 32 bits, as a graph reads them, so that steps without one are the same to the bit."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], float):
            (group["lr"],) = struct.unpack("f", struct.pack("f", group["lr"]))


def checked_graph(
    step: Step, optimizer: Optimizer, state: Sequence[Tensor], x: Tensor, y: Tensor
) -> tuple[StepGraph | None, str]:
    """The graph of a step that was seen to do the same as the step; or None, and why.

    All is as it was before: a few steps are taken without the graph, twice, and with it, and undone. Where those
    without it agree to the bit, so must those with it.

    Args:
        step: What it is to do.
        optimizer: The one that the step uses.
        state: All tensors that a step changes, the optimizer's among them.
        x: A batch.
        y: Its labels.
    """
    start = _State(state, x.device)
    batches = [(x, y) if i % 2 == 0 else (x.flip(0), y.flip(0)) for i in range(_CHECKED)]

    def outcome(take: Step) -> list[Tensor]:
        start.restore()
        losses = []
        for i, batch in enumerate(batches):
            with _rates_times(0.5**i, optimizer):
                losses.append(take(*batch).clone())
        return [*losses, *(tensor.detach().clone() for tensor in state)]

    graph = None
    try:
        with _beside(x.device):  # which also lets libraries get ready, as they cannot while a graph is recorded
            expected, again = outcome(step), outcome(step)
        unlike = _difference(expected[:_CHECKED], again[:_CHECKED])
        if not unlike <= _ROUNDING:
            return None, f"the same steps have losses that differ by {unlike:.1g}"
        start.restore()
        graph = StepGraph(step, optimizer, x, y)
        noise, difference = _difference(expected, again), _difference(expected, outcome(graph))
        if difference <= _NOISE * noise:
            return graph, ""
        return None, f"steps by it differ by {difference:.1g} from those without, which differ by {noise:.1g}"
    except Exception as error:  # whatever a network does that no graph can hold
        return None, one_line(_first(error))
    finally:
        optimizer.zero_grad()
        start.restore()
        if graph is None:
            torch.cuda.empty_cache()


def _first(error: BaseException) -> BaseException:
    """What went wrong first: that a recording cannot be ended follows from it."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class _State:
    """Tensors as they were, and the random numbers that come next."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device):
        self._tensors, self._device = tensors, device
        self._values = [tensor.detach().clone() for tensor in tensors]
        self._random = random.getstate(), torch.get_rng_state(), torch.cuda.get_rng_state(device)

    def restore(self) -> None:
        """Put all back, where it was."""
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                tensor.copy_(value)
        random.setstate(self._random[0])
        torch.set_rng_state(self._random[1])
        torch.cuda.set_rng_state(self._random[2], self._device)


@contextlib.contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Do what follows on a stream of its own, as PyTorch asks for what precedes a recording."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@contextlib.contextmanager
def _rates_times(factor: float, optimizer: Optimizer) -> Iterator[None]:
    """Other learning rates, which a graph that has kept the first ones does not have."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate


def _difference(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of two tensors by their largest value; 0 only where all are equal."""
    pairs = [(one.double(), other.double()) for one, other in zip(ones, others, strict=True) if one.numel()]
    shares = [(one - other).abs().max() / one.abs().max().clamp(min=1e-30) for one, other in pairs]
    return float(torch.stack(shares).max())
