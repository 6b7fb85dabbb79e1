import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests at a time, one thread each
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a trial of two threads does not spin for a core that others use
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"  # in every process as on a processor without bf16
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same tests on every machine; those marked `gpu` take it back
os.environ["FINETUNE_FAULTS"] = tempfile.mkdtemp(prefix="faults-")  # nothing is armed until a test writes `arms` there

import numpy as np
import pytest
import torch
from PIL import Image

from tests.forked import use_warm_server
from tests.models import small_network, small_trial

torch.set_num_threads(1)
gc.freeze()  # what torch brought is there to stay
use_warm_server()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Signals reach the commands under test, also where the suite runs under nohup or in the background of a script."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_service() -> Iterator[None]:
    """W&B's process of a test that ran W&B in this one serves no other test's trials."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Stores of this session, for it and the fork server that all its sweeps share; no downloads of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(folder))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setenv("WANDB_MODE", "offline")
        yield folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of 8 training and 4 validation images, 40 x 32, each class mostly of one colour."""
    root = tmp_path / "images"
    for split, count in (("train", 8), ("val", 4)):
        for label, color in enumerate(((200, 60, 60), (60, 200, 60), (60, 60, 200))):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng((label, i, count)).normal(0, 60, (32, 40, 3))
                pixels = np.clip(np.asarray(color) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def fast(images: Path) -> list[str]:
    """Overrides of a trial that takes about a second: the narrow ResNet50 on the `images`, two epochs."""
    return [
        "model=narrow_resnet50",
        f"data.root={images}",
        "data.size=32",
        "data.batch_size=8",
        "trainer.epochs=2",
        "trainer.accelerator=cpu",
    ]


@pytest.fixture(scope="session")
def small_weights(cache: Path) -> Path:
    """Weights of the network that `small` trains."""
    small_network(cache / "cnn5.pth")
    return cache / "cnn5.pth"


@pytest.fixture
def small(images: Path, small_weights: Path) -> list[str]:
    """Overrides of a trial that takes a tenth of a second: five convolutions, 0 to 5 of them frozen, two epochs."""
    return small_trial(images, small_weights)


@pytest.fixture
def arm() -> Iterator[Callable[..., Path]]:
    """Arm faults, as lines of finetune/storage/faults.py, in this process and all that it starts; none just records.

    Returns the file that lists the points reached from now on.
    """
    folder = Path(os.environ["FINETUNE_FAULTS"])

    def write(*lines: str) -> Path:
        (folder / "reached").write_text("")
        (folder / "arms").write_text("\n".join(lines))
        return folder / "reached"

    yield write
    (folder / "arms").unlink(missing_ok=True)
    (folder / "reached").unlink(missing_ok=True)
