"""Which activations to store for one trial or for all of a sweep, decided by what it costs, and built in few passes."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from finetune.config import Config, digest_of
from finetune.data.augment import Augment, Preprocess
from finetune.data.samples import DataSet
from finetune.network.backbone import backbone_shapes
from finetune.network.device import Precision
from finetune.network.freeze import Cut, depth_table, find_cut, plan_freeze
from finetune.network.network import build_network
from finetune.network.parts import SharedPrefix, contiguous_from
from finetune.network.weights import Weights
from finetune.sharing.activations import Source, build, measure_costs, row_shapes, store_key
from finetune.sharing.cost import Costs, Decision, decide
from finetune.sharing.facts import Shared, find_weights
from finetune.sharing.images import Images, find_data, find_images, images_key
from finetune.storage.cache import make_room
from finetune.storage.parallel import Progress
from finetune.storage.store import Store, open_store, store_bytes

UNWRITTEN = "the frozen layers run anew in each epoch, for their store could not be written"
_THERE = "stored by an earlier trial"
_NO_MEMORY = f"{UNWRITTEN}: the GPU had no memory left"


@dataclass(frozen=True)
class Want:
    """Activations that a trial could use."""

    config: Config
    source: Source
    cut: Cut
    precision: Precision
    passes: float
    """How often, by all trials together."""

    @property
    def at(self) -> int:
        """Modules before the cut."""
        return self.cut.modules

    @property
    def key(self) -> str:
        """Name of the store."""
        return store_key(self.source, self.config.model.backbone, self.cut.prefix_digest, self.at, self.precision)

    @property
    def view_of(self) -> tuple[object, ...]:
        """Equal for the views of the same images at the same cut, which are of use only together."""
        source = self.source
        augmented = None if source.view is None else (source.preprocess.augment.digest, source.seed)
        return source.split, source.pixels.digest, augmented, self.at

    @property
    def cache(self) -> Path:
        """Folder of all stores."""
        return Path(self.config.cache.dir).expanduser()

    @property
    def folder(self) -> Path:
        """Of the store."""
        return self.cache / "activations" / self.key


def wants_of(config: Config, images: Images, cut: Cut, preprocess: Preprocess) -> list[Want]:
    """Every store that a trial could use, one a view of the training images."""
    if cut.modules == 0:
        return []
    precision = Precision.of(config.trainer)
    return [
        Want(config, Source(split, store, preprocess, config.seed, view), cut, precision, times)
        for split, store in images.splits.items()
        for view, times in _passes(config)[split].items()
    ]


def _passes(config: Config) -> dict[str, dict[int | None, int]]:
    """How often a trial uses each view of each split that could be stored; None is the images as they are."""
    epochs, count = config.trainer.epochs, config.cache.views
    views: dict[int | None, int] = {None: epochs}
    if Augment.from_config(config.augment).random:
        views = {} if count is None else {v: len(range(v, epochs, count)) for v in range(min(count, epochs))}
    return {"train": views, "val": {None: epochs}, "test": {None: 1}}


def preprocess_of(config: Config, weights: Weights) -> Preprocess:
    """How the images of a trial become the network's input."""
    return Preprocess(weights.mean, weights.std, Augment.from_config(config.augment), config.cache.views)


def planned_stores(configs: Iterable[Config]) -> dict[str, int]:
    """Bytes of the stores that trials with these configs could share, by what they hold; nothing is decoded.

    Raises:
        Refused: data that cannot be used, or a freeze depth out of range.
    """
    found, sizes = dict[str, DataSet](), dict[str, dict[str, int]]()
    for config in configs:
        size, model = config.data.size, config.model
        pixels = images_key(config)
        if pixels not in found:
            found[pixels] = find_data(config)
        splits = {split: len(samples) for split, samples in found[pixels].splits.items()}
        stored = sizes.setdefault(f"pixels, {size} px", {})
        stored[pixels] = store_bytes(sum(splits.values()), (size, size, 3), 1)
        backbone, precision = backbone_shapes(model.backbone), Precision.of(config.trainer)
        plan = plan_freeze(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
        if plan.cut:
            shape = depth_table(backbone, "block", size)[plan.cut].shape
            stored = sizes.setdefault(f"activations after {plan.cut} blocks of {model.backbone}, {size} px", {})
            for split, views in _passes(config).items():
                for view in views if split in splits else ():
                    drawn = None if view is None else (view, config.seed, asdict(config.augment))
                    name = digest_of([pixels, split, drawn, model.weights, precision.name])
                    stored[name] = store_bytes(splits[split], shape, 2 if precision.bf16 else 4)
    return {what: sum(stores.values()) for what, stores in sizes.items()}


def prepare(trials: Iterable[tuple[Config, int]], stores: bool, shared: Shared, progress: Progress) -> None:
    """Check the configs of a sweep, each with the number of trials like it, and store what they share.

    Args:
        trials: The configs.
        stores: Store activations too, not just pixels: the trials will run on a machine like this one.
        shared: Gets all that was found out.
        progress: Called as the work goes on.

    Raises:
        Refused: the first config, data set or weights that cannot be used.
    """
    wants: dict[str, Want] = {}
    for config, count in trials:
        images, weights = find_images(config, shared, progress), find_weights(config.model, shared)
        cut = find_cut(config.model, weights)
        for want in wants_of(config, images, cut, preprocess_of(config, weights)) if stores and count else ():
            before = wants[want.key].passes if want.key in wants else 0.0
            wants[want.key] = replace(want, passes=before + want.passes * count)
    provide(list(wants.values()), shared, progress)


def provide(wants: list[Want], shared: Shared, progress: Progress) -> float:
    """Decide for each of these whether a store pays, and build those that do in one pass over each source.

    Returns:
        Seconds that it took to compute what was stored.
    """
    spent, held = 0.0, list[Store]()  # what is open is not evicted to make room for the next
    families = defaultdict[str, list[Want]](list)
    for want in wants:
        model, size = want.config.model, want.config.data.size
        families[repr((model.backbone, model.weights, size, want.precision, want.cache))].append(want)
    for family in families.values():
        undecided = []
        for want in family:
            if want.config.cache.mode == "off":
                shared.stores[want.key] = (False, "cache.mode=off")
            elif (store := open_store(want.folder)) is not None:
                held.append(store)
                shared.stores[want.key] = (True, _THERE)
            else:
                undecided.append(want)
        if not undecided:
            continue
        deepest = max(undecided, key=lambda want: want.at)
        model = deepest.config.model
        known = find_weights(model, shared)
        light = contiguous_from(model.backbone, deepest.config.data.size, deepest.precision)
        prefix = SharedPrefix.of(build_network(model, 2, known=known).prefix, light)
        prefix.to(deepest.precision.device)
        sources = defaultdict[str, list[Want]](list)
        try:
            costs = measure_costs(prefix, deepest.source, deepest.precision, deepest.cache)
            planned = _choose(undecided, prefix, costs, shared)
            for want in undecided:
                if want.folder in planned:
                    sources[want.source.digest].append(want)
            for of_source in sources.values():
                size = sum(planned[want.folder] for want in of_source)
                seconds, built = _build(of_source, prefix, costs, shared, size, progress)
                spent, held = spent + seconds, [*held, *built]
        except torch.OutOfMemoryError:
            for want in undecided:
                there = open_store(want.folder, verify=False) is not None
                shared.stores[want.key] = shared.stores.get(want.key, (True, _THERE)) if there else (False, _NO_MEMORY)
        del prefix
        deepest.precision.release()
    shared.folders.extend(str(want.folder) for want in wants if shared.stores[want.key][0])
    return spent


def _choose(wants: list[Want], prefix: SharedPrefix, costs: Costs, shared: Shared) -> dict[Path, int]:
    """Bytes of those of these stores that pay and for which there is room, by their folders: all views of the same
    images, or none of them.
    """
    together, shapes = defaultdict[object, list[Want]](list), dict[int, dict[int, tuple[tuple[int, ...], str]]]()
    for want in wants:
        together[want.view_of].append(want)
    cuts, planned = sorted({want.at for want in wants}), dict[Path, int]()
    for views in sorted(together.values(), key=lambda views: -views[0].at):  # the smallest first
        first, images = views[0], len(views[0].source.pixels.labels)
        pixels = first.source.pixels.images.row_bytes
        if pixels not in shapes:
            shapes[pixels] = row_shapes(prefix, first.source, cuts, first.precision)
        shape, dtype = shapes[pixels][first.at]
        row_bytes = store_bytes(1, shape, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
        passes = sum(want.passes for want in views) / len(views)
        decision = decide(costs, first.at, row_bytes, images * len(views), passes)
        if first.config.cache.mode == "on":
            decision = Decision(True, "cache.mode=on")
        if decision.pays:
            wanted = planned | dict.fromkeys((want.folder for want in views), images * row_bytes)
            decision = _with_room(decision, first, wanted, images * row_bytes * len(views))
        if decision.pays:
            planned = wanted
        shared.stores.update({want.key: (decision.pays, decision.reason) for want in views})
    return planned


def _with_room(decision: Decision, want: Want, wanted: dict[Path, int], more: int) -> Decision:
    """The decision, unless there is no room for what is `wanted` with these `more` bytes."""
    limit = want.config.cache.max_gb
    try:
        if make_room(want.cache, wanted, int(limit * 1e9)):
            return decision
    except OSError as error:
        return Decision(False, f"{UNWRITTEN}: {error}")
    return Decision(False, f"{more / 1e9:.1f} GB do not fit into cache.max_gb={limit:g}")


def _build(
    wants: list[Want], prefix: SharedPrefix, costs: Costs, shared: Shared, size: int, progress: Progress
) -> tuple[float, list[Store]]:
    """Build these stores of one source, `size` bytes together; seconds of computing, and the stores."""
    source, precision = wants[0].source, wants[0].precision

    def show(done: int, total: int) -> None:
        progress(f"frozen layers, {source.split} images, {size / 1e6:,.0f} MB", done, total)

    try:
        built, seconds = build(prefix, source, {want.at: want.folder for want in wants}, precision, costs, show)
    except OSError as error:
        for want in wants:
            shared.stores[want.key] = (False, f"{UNWRITTEN}: {error}")
        return 0.0, []
    return seconds / precision.threads, list(built.values())
