"""CUDA graphs of a pretended GPU: what is dispatched while one is recorded is undone, and done again at each replay.

As a real graph does, it keeps numbers and places of tensors as they were. What a tensor holds that is made inside comes
with a replay alone. Refused while one is recorded: what waits for the GPU, and copies from or to the CPU.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pretended_gpu import PretendedGpu, Refusal

_NEEDS_CAPTURABLE = (torch.optim.Adam, torch.optim.AdamW)
"""Optimizers that refuse to be recorded unless their groups say `capturable`; the pretended GPU answers for PyTorch."""
_CHECK = next(
    name
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")
    if hasattr(torch.optim.Optimizer, name)
)
"""What optimizers call this question, which an older PyTorch named after CUDA."""


class PretendedGraph:
    """What `torch.cuda.CUDAGraph` is."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        """Operation, arguments, and the tensors it made."""
        self.gpu: PretendedGpu | None = None
        self.replays = 0

    def replay(self) -> None:
        """Do it all again, in the same places; for the program that is one launch."""
        assert self.gpu is not None, "nothing was recorded"
        self.replays += 1
        self.gpu.counts["kernels"] += 1
        with self.gpu.paused(), torch.no_grad():
            for func, args, kwargs, made in self.calls:
                fresh = _made(func(*args, **kwargs), (args, kwargs))
                for kept, value in zip(made, fresh, strict=True):
                    kept.untyped_storage().copy_(value.untyped_storage())


def _made(result: Any, given: Any) -> list[Tensor]:
    """The tensors of a result that have memory of their own."""
    places = {x.untyped_storage().data_ptr() for x in tree_leaves(given) if isinstance(x, Tensor)}
    tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    return [x for x in tensors if x.untyped_storage().data_ptr() not in places]


class _Recorder(TorchDispatchMode):
    """Notes what is dispatched, and what it changes."""

    def __init__(self, graph: PretendedGraph, gpu: PretendedGpu):
        super().__init__()
        self.graph, self.gpu = graph, gpu
        self.before: list[tuple[Any, Any]] = []
        """Memory that was there before, and what it held."""
        self._own = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.gpu.is_paused:
            return func(*args, **kwargs)

        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func._schema.is_mutable:
            with self.gpu.paused():
                for x in given:
                    if x.untyped_storage().data_ptr() not in self._own:
                        self.before.append((x.untyped_storage(), x.untyped_storage().clone()))
        waits, copies = self.gpu.counts["waits"], self.gpu.counts["copies"]
        result = func(*args, **kwargs)
        if (self.gpu.counts["waits"], self.gpu.counts["copies"]) != (waits, copies):
            raise Refusal(f"{func}: operation not permitted when stream is capturing")

        made = _made(result, (args, kwargs))
        self._own |= {x.untyped_storage().data_ptr() for x in made}
        self.graph.calls.append((func, args, kwargs, made))
        return result

    def undo(self) -> None:
        """Nothing was done: memory of before is as it was, and what was made has no numbers yet."""
        with self.gpu.paused(), torch.no_grad():
            for storage, value in reversed(self.before):
                storage.copy_(value)
            for x in (x for *_, made in self.graph.calls for x in made):
                if x.is_floating_point():
                    x.fill_(float("nan"))


@contextlib.contextmanager
def graphs_of(gpu: PretendedGpu) -> Iterator[list[PretendedGraph]]:
    """A pretended GPU can record graphs as long as the context lasts; which it did."""
    recorded = list[PretendedGraph]()

    @contextlib.contextmanager
    def record(graph: PretendedGraph, capture_error_mode: str = "global") -> Iterator[None]:
        gpu.wait()
        graph.gpu = gpu
        recorder = _Recorder(graph, gpu)
        random = torch.get_rng_state()
        with pytest.MonkeyPatch.context() as patch:
            for kind in _NEEDS_CAPTURABLE:
                patch.setattr(kind, _CHECK, _refuse_unless_capturable)
            try:
                with recorder:
                    yield
            finally:
                recorder.undo()
                torch.set_rng_state(random)
        recorded.append(graph)

    class Stream:
        def __init__(self, device: Any = None):
            pass

        def wait_stream(self, other: Any) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        answers: dict[str, Any] = {"CUDAGraph": PretendedGraph, "graph": record, "Stream": Stream}
        answers["stream"] = lambda stream: contextlib.nullcontext()
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, answer)
        yield recorded


def _refuse_unless_capturable(optimizer: torch.optim.Optimizer) -> None:
    if not all(group["capturable"] for group in optimizer.param_groups):
        raise RuntimeError("Attempting CUDA graph capture of step() but param_groups' capturable is False.")
