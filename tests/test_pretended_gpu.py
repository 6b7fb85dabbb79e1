"""That the pretended GPU refuses what a real one would: each of these is a bug planted on purpose."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.pretended_gpu import PretendedGpu, Refusal, pretended_gpu


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with pretended_gpu(memory=10_000) as one:
        yield one


def test_operations_in_one_place_compute_and_are_counted(gpu: PretendedGpu) -> None:
    a, b = torch.ones(3, device="cuda"), torch.arange(3.0).to("cuda", non_blocking=True)
    before = gpu.counts["kernels"]
    c = (a + b).view(3, 1) * 2
    assert (c.device, c.is_cuda, c.is_cpu) == (gpu.device, True, False)
    assert gpu.counts["kernels"] - before == 2
    assert gpu.counts["waits"] == 0
    assert c.cpu().flatten().tolist() == [2, 4, 6]
    assert gpu.counts["waits"] == 1


def test_places_are_not_mixed(gpu: PretendedGpu) -> None:
    with pytest.raises(Refusal, match=r"add.Tensor|add: tensors in two places"):
        torch.ones(3, device="cuda") + torch.ones(3)
    assert (torch.ones(3, device="cuda") + torch.tensor(1.0)).is_cuda  # a number is taken along


def test_a_module_that_stayed_behind_is_found(gpu: PretendedGpu) -> None:
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(Refusal):
        layer(torch.ones(1, 3, device="cuda"))
    layer.to("cuda")(torch.ones(1, 3, device="cuda")).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_cuda


def test_numpy_sees_nothing_of_it(gpu: PretendedGpu) -> None:
    x = torch.ones(3, device="cuda")
    for look in (x.numpy, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match=r"can't convert cuda:0"):
            look()


def test_what_the_program_looks_at_is_waited_for(gpu: PretendedGpu) -> None:
    x = torch.ones(3, device="cuda")
    for look in (
        lambda: float(x.sum()),
        lambda: x.nonzero(),
        x.tolist,
        lambda: x[torch.tensor([0])],
        lambda: x.to("cpu"),
    ):
        before = gpu.counts["waits"]
        look()
        assert gpu.counts["waits"] > before


def test_a_copy_is_not_there_before_its_event(gpu: PretendedGpu) -> None:
    x = torch.full((), 5.0, device="cuda")
    to = torch.empty((), pin_memory=True).copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert np.isnan(float(to))
    while not event.query():
        pass
    assert float(to) == 5
    assert gpu.counts["waits"] == 0

    for read_too_early in (
        lambda: torch.empty(()).copy_(x, non_blocking=True),
        lambda: x.to("cpu", non_blocking=True),
    ):
        with pytest.raises(Refusal, match="read before it has come"):
            read_too_early()


def test_memory_ends_and_comes_back(gpu: PretendedGpu) -> None:
    x = torch.zeros(2000, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(2000, device="cuda")
    half = x[:1000]
    del x
    with pytest.raises(torch.OutOfMemoryError):  # a view keeps all of it
        torch.zeros(2000, device="cuda")
    del half
    assert torch.zeros(2000, device="cuda").is_cuda
    assert gpu.most_in_use == 8000


def test_apple_has_no_64_bit_floats() -> None:
    with pretended_gpu("mps") as gpu:
        assert torch.ones(2, device="mps").device == gpu.device
        with pytest.raises(TypeError, match="doesn't support float64"):
            torch.ones(2, dtype=torch.float64, device="mps")


def test_nothing_of_it_stays() -> None:
    with pretended_gpu():
        x = torch.ones(2, device="cuda")
    assert x.device.type == "cpu"
    assert not torch.cuda.is_available()
