"""Where and in what number format a trial computes."""

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


@dataclass(frozen=True)
class Precision:
    """A device, and whether convolutions and products on it are bf16."""

    device: torch.device
    bf16: bool

    @classmethod
    def of(cls, settings: TrainerConfig) -> "Precision":
        """What the settings come to on this machine.

        Raises:
            Refused: a GPU was asked for and there is none that can be used; the message says why.
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

        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return cls(device, settings.precision == "bf16" or (settings.precision == "auto" and native))

    def autocast(self) -> torch.autocast:
        """As Lightning runs a step."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

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
        """`32` or `bf16`."""
        return "bf16" if self.bf16 else "32"

    @property
    def name(self) -> str:
        """Device and format; equal where numbers come out equal."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{kind} {self.format}"
