"""What a trained network says of images: probabilities, file by file."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.augment import NO_AUGMENTATION, Preprocess
from finetune.data.decode import Transform, decode
from finetune.data.levels import DEFAULT_LEVELS, Levels
from finetune.export.classifier import Classifier
from finetune.network.device import device_named

Prediction = NDArray[np.float32] | str
"""A probability for each class, or why the file could not be read."""


def probabilities_of(
    classifier: Classifier, files: Sequence[Path], batch_size: int = 32, device: str = "auto"
) -> Iterator[tuple[Path, Prediction]]:
    """Softmax probabilities of each file, in order; a file that cannot be read gets the reason instead.

    Args:
        classifier: The network.
        files: Images of any size and kind that Pillow reads.
        batch_size: Images computed together.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
    """
    compute_device = device_named(device)
    spec = classifier.preprocessing
    network = torch.nn.Sequential(classifier.network, torch.nn.Softmax(dim=1)).eval().to(compute_device)
    resize = Transform(spec.size, spec.resize, spec.interpolation)
    levels = DEFAULT_LEVELS if spec.levels is None else Levels.parse(spec.levels)
    normalise = Preprocess(spec.mean, spec.std, NO_AUGMENTATION)

    def read(path: Path) -> NDArray[np.uint8] | str:
        try:
            return resize(decode(path, levels))
        except (ValueError, OSError) as error:
            return str(error)

    def predict(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(np.stack(images)).to(compute_device)
        with torch.inference_mode():
            return np.asarray(network(normalise(pixels)).cpu().numpy(), dtype=np.float32)

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor() as pool:
        reading = [pool.submit(read, path) for path in batches[0]] if batches else []

        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            images = [future.result() for future in reading]
            reading = [pool.submit(read, path) for path in following]  # while this batch is computed

            readable = [image for image in images if not isinstance(image, str)]
            rows = iter(predict(readable) if readable else ())
            for path, image in zip(batch, images, strict=True):
                yield path, image if isinstance(image, str) else next(rows)
