"""Which GPUs a process and its children may see, by the variables that CUDA and ROCm read. Imports no torch."""

import os

_CUDA, _HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"


def visible_gpus() -> str:
    """What the environment says of the GPUs to be seen; empty where it says nothing.

    ROCm reads the first variable too, but its own comes first.
    """
    return os.environ.get(_HIP) or os.environ.get(_CUDA, "")


def show_gpu(name: str) -> None:
    """Let this process see one GPU, as the variables name it, or none where `name` is empty.

    To be called before CUDA has begun in this process, which reads the variables once.
    """
    os.environ[_CUDA] = name
    if _HIP in os.environ:
        os.environ[_HIP] = name
