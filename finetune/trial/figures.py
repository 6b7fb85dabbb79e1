"""What steps come to, added up on the training device and looked at without waiting for it."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_MPS_LOOK = 32
"""Steps from one look at the losses on Apple's GPU to the next: each waits for it."""


class Losses:
    """The losses of steps, looked at once a GPU has got there, so that nobody waits for it."""

    def __init__(self) -> None:
        self._coming = deque[tuple[Tensor, torch.cuda.Event | None]]()

    def note(self, loss: Tensor) -> None:
        """Remember the loss of a step that may be under way still."""
        done = None
        if loss.device.type == "cuda":
            loss = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        self._coming.append((loss, done))

    def known(self, wait: bool) -> Iterator[float]:
        """Those that have come since the last call; all of them with `wait`."""
        while self._coming:
            loss, done = self._coming[0]
            if done is not None and wait:
                done.synchronize()
            is_coming = done is not None and not done.query()
            is_dear = loss.device.type == "mps" and len(self._coming) < _MPS_LOOK
            if not wait and (is_coming or is_dear):
                return
            self._coming.popleft()
            yield float(loss)


class Figures(nn.Module):
    """Mean loss and top-1 accuracy over an epoch, summed on the training device without waiting for it."""

    loss: Tensor
    right: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loss", torch.zeros(()), persistent=False)
        self.register_buffer("right", torch.zeros((), dtype=torch.int64), persistent=False)
        self.count = 0

    def update(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add a batch, given its mean loss."""
        self.add(loss, logits, y)
        self.count += len(y)

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """What the device does of that."""
        self.loss.add_(loss, alpha=len(y))
        self.right.add_((logits.argmax(1) == y).sum())

    def add_up(self, sum_of: Callable[[Tensor], Any]) -> None:
        """Make of what each device has seen what all have; `sum_of` adds up a value of each."""
        self.loss.copy_(sum_of(self.loss))
        self.right.copy_(sum_of(self.right))
        self.count = int(sum_of(torch.tensor(self.count, device=self.loss.device)))

    def compute(self) -> dict[str, float]:
        """The epoch's figures; the next epoch starts from nothing."""
        count = max(1, self.count)
        values = {"loss": float(self.loss) / count, "acc": round(float(self.right) / count, 7)}
        self.loss.zero_()
        self.right.zero_()
        self.count = 0
        return values
