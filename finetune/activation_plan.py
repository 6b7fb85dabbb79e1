"""Which activations to store for one trial or for all of a sweep, decided by what it costs, and built in few passes."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from finetune.activations import Source, build, measure_costs, row_shapes, store_key
from finetune.backbone import Weights, backbone_shapes
from finetune.cache import make_room
from finetune.checkpoint import Cut, build_network, find_cut
from finetune.config import Config
from finetune.cost import Costs, Decision, decide
from finetune.data.augment import Augment
from finetune.data.preprocess import Preprocess
from finetune.freeze import SharedPrefix, depth_table, plan_freeze
from finetune.precision import Precision
from finetune.shared import Images, Progress, Shared, find_data, find_images, find_weights
from finetune.store import Store, open_store, store_bytes

UNWRITTEN = "the frozen layers run anew in each epoch, for their store could not be written"
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
    precision, epochs = Precision.of(config.trainer), config.trainer.epochs
    views: dict[int | None, int] = {None: epochs}
    if preprocess.augment.random:
        count = preprocess.views
        views = {} if count is None else {v: len(range(v, epochs, count)) for v in range(min(count, epochs))}
    passes: dict[str, dict[int | None, int]] = {"train": views, "val": {None: epochs}, "test": {None: 1}}
    return [
        Want(config, Source(split, store, preprocess, config.seed, view), cut, precision, times)
        for split, store in images.splits.items()
        for view, times in passes[split].items()
    ]


def preprocess_of(config: Config, weights: Weights) -> Preprocess:
    """How the images of a trial become the network's input."""
    return Preprocess(weights.mean, weights.std, Augment.from_config(config.augment), config.cache.views)


def planned_stores(configs: Iterable[Config]) -> dict[str, int]:
    """Bytes of the stores that trials with these configs could share, by what they hold; nothing is decoded.

    Raises:
        Refused: data that cannot be used, or a freeze depth out of range.
    """
    sizes: dict[str, int] = {}
    for config in configs:
        images = sum(len(samples) for samples in find_data(config).splits.values())
        size, model = config.data.size, config.model
        sizes[f"pixels, {size} px"] = store_bytes(images, (size, size, 3), 1)
        backbone = backbone_shapes(model.backbone)
        plan = plan_freeze(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
        if plan.cut:
            shape = depth_table(backbone, "block", size)[plan.cut].shape
            itemsize = 2 if Precision.of(config.trainer).bf16 else 4
            sizes[f"activations after {plan.cut} blocks, {size} px"] = store_bytes(images, shape, itemsize)
    return sizes


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
        Seconds of computing that the stores took to build.
    """
    spent, held = 0.0, list[Store]()  # what is open is not evicted to make room for the next
    families = defaultdict[str, list[Want]](list)
    for want in wants:
        families[repr((want.config.model.backbone, want.config.model.weights, want.precision, want.cache))].append(want)
    for family in families.values():
        undecided = []
        for want in family:
            if want.config.cache.mode == "off":
                shared.stores[want.key] = (False, "cache.mode=off")
            elif (store := open_store(want.folder)) is not None:
                held.append(store)
                shared.stores[want.key] = (True, "stored by an earlier trial")
            else:
                undecided.append(want)
        if not undecided:
            continue
        deepest = max(undecided, key=lambda want: want.at)
        known = find_weights(deepest.config.model, shared)
        prefix = SharedPrefix.of(build_network(deepest.config.model, 2, known=known).prefix)
        prefix.to(deepest.precision.device)
        sources = defaultdict[str, list[Want]](list)
        for want in undecided:
            sources[want.source.digest].append(want)
        try:
            costs = measure_costs(prefix, deepest.source, deepest.precision, deepest.cache)
            for of_source in sources.values():
                seconds, built = _build(of_source, prefix, costs, shared, progress)
                spent, held = spent + seconds, [*held, *built]
        except torch.OutOfMemoryError:
            absent = (want for want in undecided if open_store(want.folder, verify=False) is None)
            shared.stores.update({want.key: (False, _NO_MEMORY) for want in absent})
        del prefix
        deepest.precision.release()
    shared.folders.extend(str(want.folder) for want in wants if shared.stores[want.key][0])
    return spent


def _build(
    wants: list[Want], prefix: SharedPrefix, costs: Costs, shared: Shared, progress: Progress
) -> tuple[float, list[Store]]:
    """Decide on the stores of one source and build those that pay; seconds of computing, and the stores."""
    source, precision, cache = wants[0].source, wants[0].precision, wants[0].cache
    shapes = row_shapes(prefix, source, sorted({want.at for want in wants}), precision)
    images, chosen, planned = len(source.pixels.labels), list[Want](), 0
    for want in sorted(wants, key=lambda want: -want.at):  # the smallest first
        shape, dtype = shapes[want.at]
        row_bytes = store_bytes(1, shape, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
        decision = decide(costs, want.at, row_bytes, images, want.passes)
        if want.config.cache.mode == "on":
            decision = Decision(True, "cache.mode=on")
        limit = want.config.cache.max_gb
        if decision.pays and not make_room(cache, planned + images * row_bytes, int(limit * 1e9)):
            decision = Decision(False, f"{images * row_bytes / 1e9:.1f} GB do not fit into cache.max_gb={limit:g}")
        shared.stores[want.key] = (decision.pays, decision.reason)
        if decision.pays:
            chosen.append(want)
            planned += images * row_bytes
    if not chosen:
        return 0.0, []

    def show(done: int, total: int) -> None:
        progress(f"frozen layers, {source.split} images, {planned / 1e6:,.0f} MB", done, total)

    try:
        built = build(prefix, source, {want.at: want.folder for want in chosen}, precision, costs, show)
    except OSError as error:
        for want in chosen:
            shared.stores[want.key] = (False, f"{UNWRITTEN}: {error}")
        return 0.0, []
    return images * costs.compute[max(want.at for want in chosen)], list(built.values())
