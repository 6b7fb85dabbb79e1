"""The embedded images: two related tasks drawn by one seeded generator.

Source task (`SOURCE_CLASSES`, 60 of them): which of 12 shapes with which of 5 textures is in the picture? The
shipped weights learned it. Target task (`TARGET_CLASSES`, 10 of them): which shape is above which? Colours,
places, angles, clutter and noise vary in both and mean nothing in either. So the source network's edges, textures and
shapes are worth keeping, its last layers have thrown away the very order that the target asks for, and the target has
too few images to learn shapes again: the conditions under which an interior freeze depth wins.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.errors import Refused
from finetune.storage.cache import locked
from finetune.storage.durable import published_folder

Plane = NDArray[np.floating[Any]]
"""One number per pixel, H x W."""

EMBEDDED = "shapes10"
"""What `data.root` says to mean the target task."""
VERSION = "v1"
"""Changes when a drawing does."""
TRAIN_PER_CLASS = 16
VAL_PER_CLASS = 50
SIZE = 64
"""Height and width of every image, pixels."""


def _polygon(n: int) -> Callable[[Plane, Plane], Plane]:
    return lambda r, a: np.cos(np.pi / n) / np.cos(np.mod(a, 2 * np.pi / n) - np.pi / n) - r


def _star(n: int, inner: float) -> Callable[[Plane, Plane], Plane]:
    return lambda r, a: inner + (1 - inner) * np.abs(np.mod(a * n / np.pi, 2) - 1) - r


def _box(r: Plane, a: Plane, wide: float, high: float) -> Plane:
    box: Plane = np.minimum(wide - np.abs(r * np.cos(a)), high - np.abs(r * np.sin(a)))
    return box


def _crescent(r: Plane, a: Plane) -> Plane:
    crescent: Plane = np.minimum(1 - r, np.hypot(r * np.cos(a) - 0.5, r * np.sin(a)) - 0.75)
    return crescent


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disk": lambda r, a: 0.9 - r,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "hexagon": _polygon(6),
    "star": _star(5, 0.35),
    "sun": _star(9, 0.55),
    "ring": lambda r, a: 0.25 - np.abs(r - 0.7),
    "cross": lambda r, a: np.maximum(_box(r, a, 0.95, 0.3), _box(r, a, 0.3, 0.95)),
    "bar": lambda r, a: _box(r, a, 1.0, 0.35),
    "flower": lambda r, a: 0.65 + 0.3 * np.cos(4 * a) - r,
    "crescent": _crescent,
    "half": lambda r, a: np.minimum(0.95 - r, r * np.sin(a) + 0.2),
}
"""Shape by name: polar coordinates in units of the shape's radius to a value that is positive inside."""

TEXTURES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "plain": lambda u, v: np.ones_like(u),
    "striped": lambda u, v: np.sign(np.sin(5.5 * np.pi * u)) * 0.5 + 0.5,
    "checked": lambda u, v: np.sign(np.sin(4 * np.pi * u) * np.sin(4 * np.pi * v)) * 0.5 + 0.5,
    "dotted": lambda u, v: (np.sin(5 * np.pi * u) * np.sin(5 * np.pi * v) > 0.3).astype(np.float32),
    "shaded": lambda u, v: 0.5 + 0.5 * u,
}
"""Texture by name: the shape's own coordinates, -1..1, to the share of its first colour, 0..1."""

SOURCE_CLASSES = tuple(f"{shape}_{texture}" for shape, texture in itertools.product(SHAPES, TEXTURES))
"""What the shipped weights were trained to tell apart."""

_CYCLE = ("triangle", "cross", "ring", "star", "crescent")
TARGET_CLASSES = tuple(
    f"{pair[0]}_over_{pair[1]}"
    for a, b in zip(_CYCLE, _CYCLE[1:] + _CYCLE[:1], strict=True)
    for pair in ((a, b), (b, a))
)
"""The embedded default's ten classes: five pairs of shapes, each in both orders."""


def source_image(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image of source class `label`: uint8, SIZE x SIZE x 3."""
    shape, texture = SOURCE_CLASSES[label].split("_")

    # each number of the generator has its place in this order: another one is another data set
    canvas = _background(rng)
    x, y = rng.uniform(-0.35, 0.35, 2)
    _paint(canvas, shape, texture, x, y, rng.uniform(0.32, 0.6), rng)
    return _develop(canvas, rng)


def target_image(label: int, rng: np.random.Generator, textures: Sequence[str] = tuple(TEXTURES)) -> NDArray[np.uint8]:
    """Draw one image of target class `label`, its shapes with some of these textures: uint8, SIZE x SIZE x 3."""
    upper, lower = TARGET_CLASSES[label].split("_over_")
    canvas = _background(rng)
    middle = rng.uniform(-0.12, 0.12)
    for shape, y in ((upper, -0.47), (lower, 0.47)):
        texture = str(rng.choice(list(textures)))
        x = rng.uniform(-0.45, 0.45)
        _paint(canvas, shape, texture, x, y + middle, rng.uniform(0.34, 0.46), rng)
    return _develop(canvas, rng)


def _axes() -> tuple[Plane, Plane]:
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return np.meshgrid(line, line)  # x grows to the right, y downwards


_X, _Y = _axes()


def _background(rng: np.random.Generator) -> Plane:
    """A two-colour gradient with strokes of clutter; float32, SIZE x SIZE x 3, 0..1."""
    angle = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.35 * (_X * np.cos(angle) + _Y * np.sin(angle))
    one, two = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    canvas: Plane = ramp[..., None] * one + (1 - ramp[..., None]) * two

    for _ in range(rng.integers(2, 6)):
        angle = rng.uniform(0, np.pi)
        offset = rng.uniform(-0.9, 0.9)
        across = _X * np.cos(angle) + _Y * np.sin(angle) - offset
        along = -_X * np.sin(angle) + _Y * np.cos(angle) - rng.uniform(-0.8, 0.8)
        stroke = (np.abs(across) < rng.uniform(0.02, 0.07)) & (np.abs(along) < rng.uniform(0.1, 0.5))
        canvas[stroke] = rng.uniform(0, 1, 3)
    return canvas


def _paint(
    canvas: Plane, shape: str, texture: str, x: float, y: float, radius: float, rng: np.random.Generator
) -> None:
    """Draw one shape onto `canvas` at (x, y) in -1..1, in two random colours that differ from each other."""
    # 1. The shape's own coordinates, in units of its radius
    turn = rng.uniform(0, 2 * np.pi)
    u = ((_X - x) * np.cos(turn) + (_Y - y) * np.sin(turn)) / radius
    v = (-(_X - x) * np.sin(turn) + (_Y - y) * np.cos(turn)) / radius

    # 2. How much of each pixel it covers: the distance to its edge in pixels, so that edges are smooth
    distance = SHAPES[shape](np.hypot(u, v), np.arctan2(v, u)) * radius * SIZE / 2
    inside = np.clip(distance + 0.5, 0, 1)[..., None]

    # 3. Colours: the second is at least a third of the range away in every channel
    first = rng.uniform(0, 1, 3)
    second = np.mod(first + rng.uniform(0.35, 0.65, 3), 1)
    share = TEXTURES[texture](u, v)[..., None]
    canvas[:] = (1 - inside) * canvas + inside * (share * first + (1 - share) * second)


def _develop(canvas: Plane, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Contrast, brightness and sensor noise, then 8 bits."""
    exposed = (canvas - 0.5) * rng.uniform(0.6, 1.1) + 0.5 + rng.uniform(-0.12, 0.12)
    noisy = exposed + rng.normal(0, rng.uniform(0.01, 0.09), canvas.shape)
    return np.asarray(np.clip(noisy, 0, 1) * 255 + 0.5, dtype=np.uint8)


def draw(
    image: Callable[[int, np.random.Generator], NDArray[np.uint8]], classes: int, per_class: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw `per_class` images of each class; image i depends on (seed, i) alone.

    Returns:
        Images, uint8, N x SIZE x SIZE x 3, and labels, int64, N, class after class.
    """
    labels = np.repeat(np.arange(classes), per_class)
    images = np.stack([image(int(label), np.random.default_rng((seed, i))) for i, label in enumerate(labels)])
    return images, labels


def embedded_folder(cache: Path) -> Path:
    """The target task as a folder of class folders with `train/` and `val/`, drawn into `cache` the first time.

    Raises:
        Refused: it cannot be drawn there.
    """
    folder = cache / "images" / f"{EMBEDDED}-{VERSION}"
    try:
        with locked(folder):
            if not folder.is_dir():
                with published_folder(folder) as building:
                    _draw_into(building)
    except OSError as error:
        raise Refused(
            f"the embedded images cannot be drawn into {cache}: {error}; set cache.dir to a folder of your own"
        ) from error
    return folder


def _draw_into(root: Path) -> None:
    for split, per_class, seed in (("train", TRAIN_PER_CLASS, 1), ("val", VAL_PER_CLASS, 2)):
        images, labels = draw(target_image, len(TARGET_CLASSES), per_class, seed)

        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / TARGET_CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:04}.png")
