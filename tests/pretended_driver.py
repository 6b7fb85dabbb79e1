"""What PyTorch and Lightning are told where they ask for the pretended GPU: is it there, how full is it, is it done?"""

import contextlib
import os
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import lightning_fabric
import pytest
import pytorch_lightning
import torch

from tests.forked import GPUS
from tests.pretended_gpu import H100, PretendedGpu

_CAPABILITY = {H100: (9, 0), "Tesla V100-SXM2-16GB": (7, 0)}
"""Of cards by name; others are of the generation in between, Turing, which has no bf16."""


class _Event:
    """Comes once it has been asked for twice, and with it all that was under way."""

    gpu: PretendedGpu

    def __init__(self, enable_timing: bool = False):
        self._asked = 0
        self._recorded = False

    def record(self, stream: Any = None) -> None:
        self._recorded = True

    def query(self) -> bool:
        self._asked += 1
        if self._asked > 2:
            self.gpu.arrive()
        return self._asked > 2

    def synchronize(self) -> None:
        self._asked = 3
        self.gpu.wait()

    def elapsed_time(self, later: "_Event") -> float:
        assert self._recorded
        assert later._recorded
        return 0.01


def _visible() -> Sequence[str]:
    names = [str(i) for i in range(int(os.environ.get(GPUS, "1")))]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if seen is None else [name for name in seen.split(",") if name in names]


def answer_for(
    gpu: PretendedGpu, patch: pytest.MonkeyPatch, modes: Callable[[], Sequence[contextlib.AbstractContextManager[Any]]]
) -> None:
    """Have PyTorch and Lightning ask the pretended GPU, and threads begin with its `modes`."""

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any):
            super().__init__("cpu" if device_type == gpu.kind else device_type, *args, **kwargs)

    patch.setattr(torch, "autocast", Autocast)
    run = threading.Thread.run

    def run_with_gpu(thread: threading.Thread) -> None:
        with contextlib.ExitStack() as stack:
            for mode in modes():
                stack.enter_context(mode)
            run(thread)

    patch.setattr(threading.Thread, "run", run_with_gpu)
    if hasattr(torch, "accelerator"):  # since torch 2.6
        patch.setattr(torch.accelerator, "synchronize", lambda device=None: gpu.wait())
        patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    group = torch._C._group_tensors_by_device_and_dtype

    def group_by_place(lists: Any, with_indices: bool = False) -> Any:
        def place(device: Any, columns: Any) -> Any:
            return gpu.device if any(x is not None and gpu.holds(x) for x in columns[0]) else device

        groups = group(lists, with_indices).items()
        return {(place(device, columns), dtype): (columns, rest) for (device, dtype), (columns, rest) in groups}

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", group_by_place)
    event = type("Event", (_Event,), {"gpu": gpu})
    state = torch.get_rng_state()
    answers: dict[str, Callable[..., Any]]
    if gpu.kind == "mps":
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        for accelerator in (
            lightning_fabric.accelerators.MPSAccelerator,
            pytorch_lightning.accelerators.MPSAccelerator,
        ):
            patch.setattr(accelerator, "is_available", staticmethod(lambda: True))
        answers = {
            "recommended_max_memory": lambda: gpu.memory,
            "driver_allocated_memory": lambda: gpu.in_use,
        }
        library: Any = torch.mps
    else:
        stream = types.SimpleNamespace(synchronize=gpu.wait, is_capturing=lambda: False, wait_stream=lambda other: None)
        major, minor = _CAPABILITY.get(gpu.card, (7, 5))
        properties = types.SimpleNamespace(name=gpu.card, major=major, minor=minor, total_memory=gpu.memory)
        answers = {
            "is_available": lambda: bool(_visible()),
            "device_count": lambda: len(_visible()),
            "is_initialized": lambda: gpu.begun,
            "init": lambda: None,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "get_device_properties": lambda device=None: properties,
            "get_device_name": lambda device=None: gpu.card,
            "get_device_capability": lambda device=None: (major, minor),
            "mem_get_info": lambda device=None: (gpu.memory - gpu.in_use, gpu.memory),
            "max_memory_allocated": lambda device=None: gpu.most_in_use,
            "reset_peak_memory_stats": lambda device=None: None,
            "current_stream": lambda device=None: stream,
            "is_current_stream_capturing": lambda: False,
        }
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
        library = torch.cuda
    answers |= {
        "synchronize": lambda device=None: gpu.wait(),
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: state.clone(),
        "set_rng_state": lambda new, device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "Event": event,
    }
    for name, answer in answers.items():
        patch.setattr(library, name, answer, raising=False)
