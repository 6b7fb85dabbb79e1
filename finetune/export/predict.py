"""What a trained network says of images: probabilities, file by file."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.decode import Transform, decode
from finetune.data.folders import EXTENSIONS
from finetune.errors import Refused
from finetune.export.classifier import Classifier
from finetune.network.device import device_named

Prediction = NDArray[np.float32] | str
"""A probability for each class, or why the file could not be read."""


def image_files(given: Sequence[Path]) -> list[Path]:
    """The files among `given` as they are, and the images below its folders, sorted, hidden ones left out.

    Raises:
        Refused: one of them does not exist, or there is no image.
    """
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            below = (file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            files += sorted(f for f in below if not any(p.startswith(".") for p in f.relative_to(path).parts))
        elif path.exists():
            files.append(path)
        else:
            raise Refused(f"{path}: there is no such file or folder; give images, or folders that hold some")
    if not files:
        raise Refused(f"{', '.join(map(str, given))}: no image here ({', '.join(sorted(EXTENSIONS))})")
    return files


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
    place = device_named(device)
    network = torch.nn.Sequential(classifier.network, torch.nn.Softmax(dim=1)).eval().to(place)
    size, resize, interpolation, mean, std = astuple(classifier.preprocessing)
    transform = Transform(size, resize, interpolation)

    def pixels(path: Path) -> NDArray[np.uint8] | str:
        try:
            return transform(decode(path))
        except (ValueError, OSError) as error:
            return str(error)

    def computed(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        x = torch.from_numpy(np.stack(images)).to(place).permute(0, 3, 1, 2).float() / 255
        shift, scale = (torch.tensor(values, device=place).view(1, 3, 1, 1) for values in (mean, std))
        with torch.inference_mode():
            return np.asarray(network((x - shift) / scale).cpu().numpy(), dtype=np.float32)

    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor() as pool:
        ahead = [pool.submit(pixels, path) for path in batches[0]] if batches else []
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            decoded = [future.result() for future in ahead]
            ahead = [pool.submit(pixels, path) for path in following]  # decoded while this batch is computed
            read = [image for image in decoded if not isinstance(image, str)]
            rows = iter(computed(read) if read else ())
            for path, image in zip(batch, decoded, strict=True):
                yield path, image if isinstance(image, str) else next(rows)
