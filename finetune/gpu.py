"""The GPU that this process computes on: whether there is one that can be used, and how full it is."""

import functools
import os
import sys
import warnings
from dataclasses import dataclass

import torch

from finetune.config import TRIALS_PER_GPU
from finetune.errors import Refused
from finetune.visible_gpus import show_gpu

CPU = torch.device("cpu")

_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""What errors of other kinds say where memory was missing: PyTorch's on a CPU, CUDA's, its libraries' and Metal's."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was missing, in whichever of its forms."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def why_unusable(device: torch.device) -> str:
    """Why a GPU computes nothing, in words that follow "for"; empty where it does.

    It is made to run something: whoever only counts GPUs is told of those too whose driver is too old for this
    PyTorch, and of those that are too old for it themselves.
    """
    name = "Apple's GPU" if device.type == "mps" else f"GPU {device.index}"
    try:
        with warnings.catch_warnings(action="ignore"):  # which say the same at length
            torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        if is_out_of_memory(error):
            return f"{name} has no memory left: other programs hold it"
        first_sentence = str(error).splitlines()[0].split(". ")[0].removesuffix(".")
        return f"{name} cannot be used: {first_sentence}"
    return ""


def _devices() -> list[torch.device]:
    """The GPUs that this process sees, whether or not they can be used."""
    with warnings.catch_warnings(action="ignore"):
        count = torch.cuda.device_count()
    if count:
        return [torch.device("cuda", i) for i in range(count)]
    return [torch.device("mps")] if torch.backends.mps.is_available() else []


def try_gpus() -> dict[str, str]:
    """Why each GPU that this process sees computes nothing, empty where it does, by PyTorch's name of it."""
    return {str(device): why_unusable(device) for device in _devices()}


@dataclass(frozen=True)
class FoundGpu:
    """The GPU that a process computes on, if any."""

    device: torch.device | None
    why_none: str = ""
    """Why there is none, in words that follow "for"."""
    broken: bool = False
    """One is there, but computes nothing."""


@functools.cache
def find_gpu() -> FoundGpu:
    """The first GPU that this process sees, tried once a process.

    One that computes nothing is hidden, so that nothing else in this process stumbles over it.
    """
    devices = _devices()
    if not devices:
        return FoundGpu(None, "torch finds no GPU here")

    trouble = why_unusable(devices[0])
    if not trouble:
        return FoundGpu(devices[0])

    show_gpu("")
    return FoundGpu(None, trouble, broken=True)


@functools.cache
def _warn(why: str) -> None:
    print(f"warning: computing on the CPU, for {why}", file=sys.stderr, flush=True)


def gpu_or_cpu() -> torch.device:
    """A GPU where one can be used, else the CPU: with a warning where a GPU is there and cannot.

    Raises:
        Refused: a sweep gave this process a GPU, and it cannot be used; its trials are not to be compared with
            others that ran in other formats, for hours.
    """
    gpu = find_gpu()
    if gpu.device is not None:
        return gpu.device

    if TRIALS_PER_GPU in os.environ:
        raise Refused(f"{gpu.why_none}; it was given to this trial by the sweep")
    if gpu.broken:
        _warn(gpu.why_none)
    return CPU


def wait_for(device: torch.device) -> None:
    """Return once a GPU has done what it was given; at once on a CPU."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type != "cpu":
        torch.cuda.synchronize(device)


def gpu_memory_mb(device: torch.device) -> float | None:
    """MiB of a GPU that this process has used at the most; None on a CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if device.type == "mps":  # which keeps what it was given
        return round(torch.mps.driver_allocated_memory() / 2**20, 1)
    return None


def room_on_gpu(device: torch.device) -> int:
    """Bytes of images or activations that a trial keeps on a GPU: half of its free memory, or of this trial's share.

    0 on a CPU, which reads them from the page cache.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif device.type == "mps":
        free = max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    else:
        return 0
    return free // (2 * int(os.environ.get(TRIALS_PER_GPU, "1")))
