"""What the trials of a sweep will cost on this machine, reckoned from a few seconds of measurement."""

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.config import Config, digest_of
from finetune.data.augment import Augment, Preprocess
from finetune.data.decode import Transform
from finetune.data.samples import DataSet
from finetune.errors import counted
from finetune.network.backbone import backbone_shapes
from finetune.network.catalog import with_input
from finetune.network.depths import depth_table
from finetune.network.device import Precision
from finetune.network.freeze import Cut, cut_of
from finetune.network.network import build_network
from finetune.network.weights import Weights
from finetune.sharing.cost import Costs, Disk, cumulative, decide, measure_disk
from finetune.sharing.facts import Facts, find_weights
from finetune.sharing.images import find_data, images_key
from finetune.sharing.requests import passes_of
from finetune.storage.store import store_bytes
from finetune.storage.system import free_memory, processor_name, usable_cores
from finetune.trial.timing import Overhead, UnitSeconds, time_decoding, time_input, time_overhead, time_units

BUDGET = 20.0
"""Seconds that a calibration may take."""
_OF_DECODING = 2.0
_OF_OVERHEAD = 4.0
"""Parts of the budget."""
_FORK = 0.15
"""Seconds from the launch of a trial to its first statement: benchmarks/overhead.py."""


@dataclass(frozen=True)
class Calibration:
    """What was found out."""

    starts: tuple[float, ...]
    """Of each kind of trial that was asked about, the seconds that are no epoch."""
    epochs: tuple[float, ...]
    """And those of an epoch."""
    prepare: float
    """Seconds before the first trial: decoding, and activations to store, with all cores or one GPU."""
    machine: str
    """What it was measured on, in words."""


@dataclass(frozen=True)
class _Kind:
    """Trials that cost the same."""

    config: Config
    count: int
    cut: Cut
    precision: Precision
    images: dict[str, int]
    """By split."""
    data: str
    """Names the decoded images."""
    row: tuple[int, ...]
    """Shape of an image's activations at the cut."""

    @property
    def network(self) -> tuple[str, int, int, Precision]:
        """What units are timed for."""
        return self.config.model.backbone, self.config.data.size, self.config.data.batch_size, self.precision

    @property
    def row_bytes(self) -> int:
        """Of an image's activations in a store."""
        return store_bytes(1, self.row, self.precision.dtype.itemsize)


def calibrate(trials: Sequence[tuple[Config, int]]) -> Calibration:
    """Measure this machine, and reckon what kinds of trials cost on it: one config of each, and how many there are.

    To be called in as many processes at once as trials will run, each with as many threads as a trial: so each
    measures what the others leave it.

    Raises:
        Refused: data, weights or depths that cannot be used.
    """
    data = dict[str, DataSet]()
    kinds = []
    weights = dict[str, Weights]()
    for config, count in ((with_input(config), count) for config, count in trials):
        if Path(config.model.weights).suffix and config.model.weights not in weights:  # a file; names may be downloads
            weights[config.model.weights] = find_weights(config, Facts())
        key = images_key(config)
        data.setdefault(key, find_data(config))
        kinds.append(_kind(config, count, key, data[key]))

    # 1. What is measured
    first = kinds[0].config
    threads = torch.get_num_threads()
    overhead = time_overhead(first.trainer.accelerator)
    networks = {kind.network: kind for kind in kinds}
    share = (BUDGET - _OF_DECODING - _OF_OVERHEAD) / len(networks)
    measured = {}
    for network, kind in networks.items():
        measured[network] = _Measured(
            time_units(*network, budget=share), _seconds_to_build(kind, weights.get(kind.config.model.weights))
        )
    inputs = {_input(kind): time_input(_preprocess(kind.config), *kind.network[1:]) for kind in kinds}
    decoding = {kind.data: _seconds_to_decode(kind, data[kind.data]) for kind in kinds}
    disk = measure_disk(Path(first.cache.dir).expanduser())

    # 2. What follows from it
    stored = _stored(kinds, measured, disk)
    reckoned = [
        _cost(kind, measured[kind.network], overhead, inputs[_input(kind)], disk, stored[i])
        for i, kind in enumerate(kinds)
    ]
    prepare = sum(decoding.values()) + _storing(kinds, measured, disk, stored)
    starts, epochs = zip(*reckoned, strict=True)
    return Calibration(starts, epochs, prepare, _machine(kinds[0].precision, threads))


@dataclass(frozen=True)
class _Measured:
    """One network."""

    units: UnitSeconds
    build: float
    """Seconds to build it and to read its weights."""

    def frozen(self, modules: int) -> float:
        """Seconds an image of the units before a cut."""
        return sum(self.units.frozen[:modules])


def _kind(config: Config, count: int, key: str, data: DataSet) -> _Kind:
    cut = cut_of(config)
    backbone = backbone_shapes(config.model.backbone, config.data.size)
    row = depth_table(backbone, "block", config.data.size)[min(cut.modules, len(backbone.units))].shape
    images = {split: len(samples) for split, samples in data.splits.items()}
    return _Kind(config, count, cut, Precision.of(config.trainer), images, key, tuple(row))


def _seconds_to_build(kind: _Kind, weights: Weights | None) -> float:
    """With its weights, or with random ones, which take about as long."""
    model = kind.config.model if weights is not None else replace(kind.config.model, weights="none")
    start = time.perf_counter()
    build_network(model, weights or Weights({}, (), (), {}), kind.cut, classes=2, size=kind.config.data.size)
    return time.perf_counter() - start


def _preprocess(config: Config) -> Preprocess:
    return Preprocess((0.5,) * 3, (0.5,) * 3, Augment.from_config(config.augment), config.cache.views)


def _input(kind: _Kind) -> str:
    """Equal for kinds whose images are augmented alike."""
    return digest_of([asdict(kind.config.augment), *kind.network[:3], kind.precision.name])


def _seconds_to_decode(kind: _Kind, data: DataSet) -> float:
    """Of all images of a data set."""
    settings = kind.config.data
    transform = Transform(settings.size, settings.resize, settings.interpolation)
    an_image = time_decoding(data.splits["train"].paths, transform, _OF_DECODING)
    return an_image * sum(kind.images.values()) / (settings.workers or usable_cores())


def _views(kind: _Kind, split: str) -> tuple[int, float]:
    """How many stores a split of a kind's images has, and how often a trial goes through each of them."""
    passes = passes_of(kind.config)[split]
    return len(passes), sum(passes.values()) / max(1, len(passes))


def _source(kind: _Kind, split: str) -> tuple[Any, ...]:
    """Equal for kinds whose stores of a split are filled from the same input by the same network."""
    augmented = split == "train" and Augment.from_config(kind.config.augment).random
    return kind.data, split, kind.network[0], kind.config.model.weights, _input(kind) if augmented else ""


def _stored(kinds: Sequence[_Kind], measured: Mapping[Any, _Measured], disk: Disk) -> list[dict[str, bool]]:
    """For each kind, by split, whether its activations will be stored, as `sharing.plan` decides."""
    passes = defaultdict[Any, float](float)
    for kind in kinds:
        for split in kind.images:
            passes[_source(kind, split), kind.cut.modules] += kind.count * _views(kind, split)[1]

    def pays(kind: _Kind, split: str) -> bool:
        views, _ = _views(kind, split)
        rows = kind.images[split] * views
        if kind.cut.modules == 0 or views == 0 or kind.config.cache.mode == "off":
            return False
        if rows * kind.row_bytes > kind.config.cache.max_gb * 1e9:
            return False
        costs = Costs(disk, cumulative(measured[kind.network].units.frozen), free_memory())
        of_all = passes[_source(kind, split), kind.cut.modules]
        return kind.config.cache.mode == "on" or decide(costs, kind.cut.modules, kind.row_bytes, rows, of_all).pays

    return [{split: pays(kind, split) for split in kind.images} for kind in kinds]


def _cost(
    kind: _Kind, measured: _Measured, overhead: Overhead, to_input: float, disk: Disk, stored: Mapping[str, bool]
) -> tuple[float, float]:
    """Seconds of a trial that are no epoch, and those of an epoch."""
    modules, units, batch = kind.cut.modules, measured.units, kind.config.data.batch_size
    behind_frozen, behind_trained = sum(units.frozen[modules:]), sum(units.trained[modules:])

    def pass_over(split: str, behind: float, of_a_step: float) -> float:
        before = kind.row_bytes / disk.read if stored[split] else to_input + measured.frozen(modules)
        images = kind.images[split]
        return images * (before + behind) + math.ceil(images / batch) * of_a_step

    sizes = {name: tensor.numel() for name, tensor in backbone_shapes(*kind.network[:2]).model.named_parameters()}
    trained = sum(size for name, size in sizes.items() if name not in kind.cut.frozen)
    optimizer = units.optimizer * trained / sum(sizes.values())
    epoch = pass_over("train", behind_trained, overhead.step + optimizer)
    epoch += pass_over("val", behind_frozen, overhead.step)

    test = pass_over("test", behind_frozen, overhead.step) if "test" in kind.images else 0.0
    return _FORK + overhead.start + measured.build + 4 * trained / disk.write + test, epoch


def _storing(
    kinds: Sequence[_Kind], measured: Mapping[Any, _Measured], disk: Disk, stored: Sequence[Mapping[str, bool]]
) -> float:
    """Seconds to fill all stores: each source goes once through the network, up to its deepest cut."""
    seconds = dict[Any, float]()
    written = dict[Any, int]()
    for kind, of_kind in zip(kinds, stored, strict=True):
        at_once = usable_cores() if kind.precision.device.type == "cpu" else 1
        for split in (split for split, is_stored in of_kind.items() if is_stored):
            rows, source = kind.images[split] * _views(kind, split)[0], _source(kind, split)
            computing = rows * measured[kind.network].frozen(kind.cut.modules) / at_once
            seconds[source] = max(seconds.get(source, 0.0), computing)
            written[source, kind.cut.modules] = rows * kind.row_bytes
    return sum(seconds.values()) + sum(written.values()) / disk.write


def _machine(precision: Precision, threads: int) -> str:
    if precision.device.type != "cpu":
        return precision.name
    number_format = precision.format if precision.has_16_bits else "32-bit"
    return f"{processor_name()}, {counted(threads, 'thread')} a trial, {number_format}"
