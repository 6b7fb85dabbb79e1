"""A pretended GPU: every tensor has a place, on it or on the CPU, and what a real one would refuse is refused.

All is computed on the CPU, in the numbers of a CPU. A tensor's place is its storage's. Refused are operations that mix
places, NumPy views of the GPU's, copies to the CPU that are read before they have come, memory beyond the GPU's, and
on Apple's, 64-bit floats. Counted are kernels (about: operations that are no views), copies, and what waits.

`tests.forked.GPUS` in the environment gives the children of a sweep so many GPUs; each sees what
`CUDA_VISIBLE_DEVICES` says.
"""

import collections
import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

H100 = "NVIDIA H100 80GB HBM3"
_WAIT = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2"}
"""Operations whose result the program looks at."""
_NO_KERNEL = {
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "empty_like",
    "empty_strided",
    "expand",
    "new_empty",
    "new_empty_strided",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsqueeze",
    "view",
    "view_as",
}
"""Operations that compute nothing."""


class Refusal(RuntimeError):
    """What a real GPU would refuse, or answer with wrong numbers."""


class PretendedGpu:
    """One for this process; `pretended_gpu` switches it on."""

    def __init__(self, kind: str = "cuda", memory: int = 2**34, card: str = H100):
        """`kind` is `cuda` or `mps`; it has `memory` bytes; `card` is the name of NVIDIA's."""
        self.kind, self.memory, self.card = kind, memory, card
        self.device = torch.device(kind, 0)
        self.counts = collections.Counter[str]()
        """`kernels`, `copies`, `waits`."""
        self.begun = False
        self.in_use = self.most_in_use = 0
        """Bytes."""
        self._coming: list[tuple[Tensor, Tensor]] = []
        """Copies to pinned memory that are under way: where to, and what."""
        self._pinned = weakref.WeakSet[Any]()
        self._inside = threading.local()

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor lies on the GPU."""
        return getattr(x.untyped_storage(), "is_on_gpu", False)

    def put(self, x: Tensor) -> Tensor:
        """Say that a new tensor lies on the GPU.

        Raises:
            torch.OutOfMemoryError: it is full.
        """
        storage: Any = x.untyped_storage()
        if x.device.type == "meta" or getattr(storage, "is_on_gpu", False):
            return x
        if self.kind == "mps" and x.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )

        size = storage.nbytes()
        if self.in_use + size > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        self.in_use += size
        self.most_in_use = max(self.most_in_use, self.in_use)
        self.begun = True
        storage.is_on_gpu = True
        weakref.finalize(storage, self._free, size)
        return x

    def _free(self, size: int) -> None:
        self.in_use -= size

    def means(self, device: Any) -> bool:
        """Whether an argument of PyTorch's names the GPU."""
        return isinstance(device, int) or (device is not None and torch.device(device).type == self.kind)

    def arrive(self) -> None:
        """Everything that was under way has come."""
        coming, self._coming = self._coming, []
        with self.paused():
            for to, value in coming:
                to.copy_(value)

    def wait(self) -> None:
        """The program waits until the GPU has done all that it was given."""
        self.counts["waits"] += 1
        self.arrive()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no program's doing."""
        before = self.is_paused
        self._inside.paused = True
        try:
            yield
        finally:
            self._inside.paused = before

    @property
    def is_paused(self) -> bool:
        return getattr(self._inside, "paused", False)

    def pin(self, x: Tensor) -> Tensor:
        self._pinned.add(x.untyped_storage())
        return x

    def move(self, x: Tensor, to_gpu: bool, dtype: torch.dtype | None, at_once: bool, **how: Any) -> Tensor:
        """A tensor's values in another place."""
        self.counts["copies"] += 1
        if not to_gpu and not at_once:
            raise Refusal("a copy to the CPU's pageable memory is not waited for: it is read before it has come")
        if at_once:  # also to the GPU: from pageable memory PyTorch waits for the stream
            self.wait()
        with self.paused():
            moved = x.detach().to(dtype or x.dtype, copy=True, **how)
        moved.requires_grad_(x.requires_grad and torch.is_grad_enabled())
        return self.put(moved) if to_gpu else moved

    def copy_into(self, to: Tensor, source: Tensor, at_once: bool) -> Tensor:
        """`to.copy_(source)` between two places."""
        self.counts["copies"] += 1
        if self.holds(to) or at_once:
            if at_once:
                self.wait()
            with self.paused():
                return to.copy_(source)

        if to.untyped_storage() not in self._pinned:
            raise Refusal("a copy to the CPU's pageable memory is not waited for: it is read before it has come")
        with self.paused():
            self._coming.append((to, source.clone()))
            return to.fill_(float("nan")) if to.is_floating_point() else to


class _Places(TorchDispatchMode):
    """Below autograd: what computes where, and what comes of it."""

    def __init__(self, gpu: PretendedGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, kwargs or {}
        if gpu.is_paused:
            return func(*args, **kwargs)

        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.device.type == "cpu"]
        on_gpu = [gpu.holds(x) for x in tensors]
        if not any(on_gpu):
            return func(*args, **kwargs)

        if name == "copy_" and not all(on_gpu):
            return gpu.copy_into(args[0], args[1], at_once=not (len(args) > 2 and args[2]))
        strangers = [x for x, here in zip(tensors, on_gpu, strict=True) if not here]
        if name in ("index", "index_put_", "_index_put_impl_") and on_gpu[0] and strangers:
            gpu.wait()  # for the indices, which are copied
        elif any(x.dim() > 0 for x in strangers) or (strangers and ("foreach" in name or "fused" in name)):
            raise Refusal(f"{name}: tensors in two places: {[tuple(x.shape) for x in strangers]} are not on the GPU")

        if name in _WAIT:
            gpu.wait()
        elif name not in _NO_KERNEL:
            gpu.counts["kernels"] += 1
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, gpu.put, result)


class _Names(TorchFunctionMode):
    """What a program asks by name: places of tensors, moves, new tensors on a device."""

    def __init__(self, gpu: PretendedGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, dict(kwargs or {})
        if gpu.is_paused:
            return func(*args, **kwargs)

        if getattr(func, "__name__", "") == "__get__":
            return self._attribute(func, args)
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._to(func, args, kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and gpu.holds(args[0]):
            raise TypeError(f"can't convert {gpu.device} device type tensor to numpy. Use Tensor.cpu() first.")
        if func is Tensor.tolist and gpu.holds(args[0]):
            gpu.wait()
        if func is Tensor.pin_memory:
            return gpu.pin(args[0].clone())

        is_pinned = kwargs.pop("pin_memory", False)
        is_on_gpu = gpu.means(kwargs.get("device"))
        if is_on_gpu:
            kwargs["device"] = "cpu"
            gpu.counts["kernels"] += 1
        result = func(*args, **kwargs)
        if is_pinned:
            gpu.pin(result)
        return tree_map_only(Tensor, gpu.put, result) if is_on_gpu else result

    def _attribute(self, func: Any, args: Any) -> Any:
        label = getattr(getattr(func, "__self__", None), "__name__", "")
        if label in ("device", "is_cuda", "is_cpu", "is_mps") and self.gpu.holds(args[0]):
            return self.gpu.device if label == "device" else label == f"is_{self.gpu.kind}"
        return func(*args)

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        x, rest = args[0], list(args[1:])
        if func is Tensor.cuda or func is Tensor.cpu:
            rest.insert(0, "cpu" if func is Tensor.cpu else self.gpu.device)
        other = next((a for a in (*rest, kwargs.get("other")) if isinstance(a, Tensor)), None)
        dtype = kwargs.get("dtype") or next((a for a in rest if isinstance(a, torch.dtype)), None)
        device = kwargs.get("device", next((a for a in rest if isinstance(a, str | int | torch.device)), None))
        if isinstance(device, bool):
            device = None
        if other is not None:
            dtype, device = other.dtype, self.gpu.device if self.gpu.holds(other) else other.device

        if device is None or x.device.type == "meta" or torch.device(device).type == "meta":
            return func(*args, **kwargs)
        here, there = self.gpu.holds(x), self.gpu.means(device)
        how = {name: value for name, value in kwargs.items() if name == "memory_format"}
        if here == there:
            return x.to(dtype or x.dtype, copy=kwargs.get("copy", False), **how)
        is_non_blocking = kwargs.get("non_blocking", False) or any(a is True for a in rest)
        return self.gpu.move(x, there, dtype, at_once=not is_non_blocking, **how)


@contextlib.contextmanager
def pretended_gpu(kind: str = "cuda", memory: int = 2**34, card: str = H100) -> Iterator[PretendedGpu]:
    """This process has a GPU, of `memory` bytes, as long as the context lasts."""
    from finetune.gpu import _warn, find_gpu
    from tests.pretended_driver import answer_for

    gpu = PretendedGpu(kind, memory, card)
    caches = find_gpu, _warn
    for cache in caches:
        cache.cache_clear()
    with pytest.MonkeyPatch.context() as patch, _Names(gpu), _Places(gpu):
        answer_for(gpu, patch, lambda: (_Names(gpu), _Places(gpu)))
        yield gpu
    for cache in caches:
        cache.cache_clear()
