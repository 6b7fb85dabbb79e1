"""Where and in what number format a trial computes."""

from dataclasses import dataclass

import torch

from finetune.config import TrainerConfig
from finetune.errors import Refused


def device_named(name: str) -> torch.device:
    """`cpu`, `cuda`, or `auto` for a GPU where there is one."""
    _use_all_bits()
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


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
            Refused: a GPU was asked for and there is none.
        """
        if settings.accelerator == "gpu" and not torch.cuda.is_available():
            raise Refused("trainer.accelerator=gpu, but torch finds no GPU here; set it to auto or cpu")
        on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
        native = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and native)
        _use_all_bits()
        return cls(torch.device("cuda", 0) if on_gpu else torch.device("cpu"), bf16)

    def autocast(self) -> torch.autocast:
        """As Lightning runs a step."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def release(self) -> None:
        """Give back a GPU's memory that nothing uses any more, and count its use anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def threads(self) -> int:
        """Of the CPU that compute; a GPU counts as one."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    @property
    def name(self) -> str:
        """Device and format; equal where numbers come out equal."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{kind} {'bf16' if self.bf16 else '32'}"
