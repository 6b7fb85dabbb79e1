"""Where and in what number format a trial computes."""

import re
from dataclasses import dataclass

import torch

from finetune.config import TrainerConfig
from finetune.errors import Refused
from finetune.gpu import CPU, find_gpu, gpu_or_cpu


def device_named(name: str) -> torch.device:
    """`cpu`, `cuda`, `mps`, or `auto` for a GPU where there is one that can be used.

    Raises:
        Refused: a GPU was asked for by name and cannot be used; the message says why.
    """
    _use_all_bits()
    if name == "cpu":
        return CPU
    if name == "auto":
        return gpu_or_cpu()

    gpu = find_gpu()
    if gpu.device is None or gpu.device.type != name:
        raise Refused(f"{name}: {gpu.why_none or f'the GPU here is {gpu.device}'}; give auto or cpu")
    return gpu.device


def _use_all_bits() -> None:
    """Have a GPU compute 32-bit convolutions in 32 bits; one that would take TF32 for them has bf16 for speed."""
    torch.backends.cudnn.allow_tf32 = False


FORMATS = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of `trainer.precision`."""
_NAMES = {dtype: name for name, dtype in FORMATS.items()}


@dataclass(frozen=True)
class Precision:
    """A device, and the number format of convolutions and products on it; all else is 32-bit."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, settings: TrainerConfig) -> "Precision":
        """What the settings come to on this machine.

        Raises:
            Refused: a GPU was asked for and there is none that can be used, or a format that the device lacks; the
                message says why.
        """
        _use_all_bits()
        device = CPU
        if settings.accelerator == "gpu":
            gpu = find_gpu()
            if gpu.device is None:
                raise Refused(f"trainer.accelerator=gpu, but {gpu.why_none}; set it to auto or cpu")
            device = gpu.device
        elif settings.accelerator == "auto":
            device = gpu_or_cpu()

        if settings.precision == "fp16" and device.type != "cuda":
            here = "Apple's GPU" if device.type == "mps" else "a CPU"
            raise Refused(f"trainer.precision=fp16 is for NVIDIA's and AMD's GPUs, and this is {here}; set it to auto")
        return cls(device, _fastest(device) if settings.precision == "auto" else FORMATS[settings.precision])

    def autocast(self) -> torch.autocast:
        """As Lightning runs a step."""
        if not self.has_16_bits:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, self.dtype)

    @property
    def has_16_bits(self) -> bool:
        """Whether the format has 16 bits."""
        return self.dtype != torch.float32

    def release(self) -> None:
        """Give back a GPU's memory that nothing uses any more, and count its use anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    @property
    def threads(self) -> int:
        """Of the CPU that compute; a GPU counts as one."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @property
    def format(self) -> str:
        """`32`, `bf16` or `fp16`."""
        return _NAMES[self.dtype]

    @property
    def name(self) -> str:
        """Device and format; equal where numbers come out equal."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{kind} {self.format}"


_TENSOR_CORES_BUT_NO_BF16 = re.compile(r"\b(V100|TITAN V|GV100|Xavier|T4G?|RTX)\b", re.IGNORECASE)
"""Of NVIDIA's Volta and Turing. Others of the latter, GeForce GTX 16, MX and Quadro T, lack the cores, and are known to
give NaN in fp16 (pytorch/pytorch#77955); only their names tell them apart."""


def _fastest(device: torch.device) -> torch.dtype:
    """A GPU's fastest format for training; a CPU's is 32-bit until something else was measured."""
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    has_cores = _TENSOR_CORES_BUT_NO_BF16.search(torch.cuda.get_device_name(device))
    return torch.float16 if has_cores else torch.float32
