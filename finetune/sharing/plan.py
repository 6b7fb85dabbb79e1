"""Which activations to store, for one trial or a whole sweep: decided by what it costs, and built in few passes."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from finetune.config import Config, digest_of
from finetune.data.augment import Augment, Preprocess
from finetune.data.samples import DataSet
from finetune.network.backbone import backbone_shapes
from finetune.network.device import Precision
from finetune.network.freeze import Cut, depth_table, find_cut
from finetune.network.network import build_network
from finetune.network.parts import FrozenPrefix, SharedPrefix, first_contiguous
from finetune.network.weights import Weights
from finetune.sharing.activations import Source, build, measure_costs, row_shapes, store_key
from finetune.sharing.cost import Costs, Decision, decide
from finetune.sharing.facts import Facts, StoreChoice, WeightFacts, weights_key
from finetune.sharing.images import Images, find_data, images_key, open_images, pixel_folder
from finetune.storage.cache import make_room
from finetune.storage.parallel import Progress, no_progress
from finetune.storage.store import Rows, Store, open_store, store_bytes

UNWRITTEN = "the frozen layers run anew in each epoch, for their store could not be written"
_STORED_BEFORE = StoreChoice(True, "stored by an earlier trial")
_NO_MEMORY = StoreChoice(False, f"{UNWRITTEN}: the GPU had no memory left")


@dataclass(frozen=True)
class StoreRequest:
    """Activations that a trial could use: one store."""

    config: Config
    source: Source
    weights: Weights
    cut: Cut
    precision: Precision
    passes: float
    """How often they are gone through, by all trials together."""

    @functools.cached_property
    def key(self) -> str:
        """The name of the store."""
        prefix_digest = self.weights.digest_of(self.cut.prefix)
        return store_key(self.source, self.config.model.backbone, prefix_digest, self.cut.modules, self.precision)

    @property
    def cache(self) -> Path:
        """The folder of all stores."""
        return Path(self.config.cache.dir).expanduser()

    @property
    def folder(self) -> Path:
        """The folder of this one."""
        return self.cache / "activations" / self.key

    @property
    def network(self) -> str:
        """Equal for requests that one prefix can answer."""
        model = self.config.model
        return repr((model.backbone, model.weights, self.config.data.size, self.precision, self.cache))

    @property
    def view_group(self) -> tuple[object, ...]:
        """Equal for the views of the same images at the same cut, which are of use only together."""
        source = self.source
        augmented = None if source.view is None else (source.preprocess.augment.digest, source.seed)
        return source.split, source.pixels.digest, augmented, self.cut.modules


@dataclass(frozen=True)
class BuiltStores:
    """What became of requests."""

    choices: Mapping[str, StoreChoice] = field(default_factory=dict)
    """By the name of the store."""
    folders: tuple[str, ...] = ()
    """The folders of those that are used."""
    seconds: float = 0.0
    """Time that it took to compute what was stored here."""


@dataclass(frozen=True)
class Activations:
    """What is stored of one trial's images at its cut."""

    rows: Mapping[str, list[Rows]]
    """By split, for those that have them: one store a view."""
    saves: Mapping[str, float]
    """Seconds that the stores of a split save each time it is gone through."""
    reason: str
    """Why the training images have stores, or none."""
    warnings: tuple[str, ...]
    seconds: float
    """Time that this trial took to compute activations for them."""


def preprocess_of(config: Config, weights: Weights) -> Preprocess:
    """How the images of a trial become the network's input."""
    return Preprocess(weights.mean, weights.std, Augment.from_config(config.augment), config.cache.views)


def requests_of(
    config: Config, images: Images, weights: Weights, cut: Cut, preprocess: Preprocess
) -> list[StoreRequest]:
    """Every store that a trial could use, one a view of the training images."""
    if cut.modules == 0:
        return []

    precision = Precision.of(config.trainer)
    passes = _passes(config)
    return [
        StoreRequest(config, Source(split, pixels, preprocess, config.seed, view), weights, cut, precision, times)
        for split, pixels in images.splits.items()
        for view, times in passes[split].items()
    ]


def _passes(config: Config) -> dict[str, dict[int | None, int]]:
    """How often a trial goes through each view of each split that could be stored; None is the images as they are."""
    epochs, count = config.trainer.epochs, config.cache.views
    train: dict[int | None, int] = {None: epochs}
    if Augment.from_config(config.augment).random:
        train = {} if count is None else {view: len(range(view, epochs, count)) for view in range(min(count, epochs))}
    return {"train": train, "val": {None: epochs}, "test": {None: 1}}


def planned_stores(configs: Iterable[Config]) -> dict[str, int]:
    """Bytes of the stores that trials with these configs could share, by what they hold; nothing is decoded.

    Raises:
        Refused: data that cannot be used, or a freeze depth out of range.
    """
    data_sets = dict[str, DataSet]()
    sizes = defaultdict[str, dict[str, int]](dict)
    for config in configs:
        size, model = config.data.size, config.model
        pixels = images_key(config)
        if pixels not in data_sets:
            data_sets[pixels] = find_data(config)
        images = {split: len(samples) for split, samples in data_sets[pixels].splits.items()}
        sizes[f"pixels, {size} px"][pixels] = store_bytes(sum(images.values()), (size, size, 3), 1)

        backbone, precision = backbone_shapes(model.backbone), Precision.of(config.trainer)
        cut = find_cut(backbone, model.freeze_depth, model.freeze_unit, model.frozen_bn)
        if cut.modules == 0:
            continue

        blocks = min(cut.modules, len(backbone.units))
        shape = depth_table(backbone, "block", size)[blocks].shape
        stores = sizes[f"activations after {blocks} blocks of {model.backbone}, {size} px"]
        for split, views in _passes(config).items():
            for view in views if split in images else ():
                augmented = None if view is None else (view, config.seed, asdict(config.augment))
                name = digest_of([pixels, split, augmented, model.weights, precision.name])
                stores[name] = store_bytes(images[split], shape, 2 if precision.bf16 else 4)

    return {what: sum(stores.values()) for what, stores in sizes.items()}


def prepare(trials: Iterable[tuple[Config, int]], stores: bool, progress: Progress = no_progress) -> Facts:
    """Check the configs of a sweep, each with the number of trials like it, and store what they share.

    Args:
        trials: The configs.
        stores: Store activations too, not just pixels: the trials will run on a machine like this one.
        progress: Called as the work goes on.

    Returns:
        All that was found out.

    Raises:
        Refused: the first config, data set or weights that cannot be used.
    """
    facts = Facts()
    requests: dict[str, StoreRequest] = {}
    for config, count in trials:
        images, weights, cut = open_images(config, facts, progress)
        facts = _with(facts, config, images, weights)
        if not stores or not count:
            continue

        for request in requests_of(config, images, weights, cut, preprocess_of(config, weights)):
            passes = requests[request.key].passes if request.key in requests else 0.0
            requests[request.key] = replace(request, passes=passes + request.passes * count)

    built = build_stores(list(requests.values()), progress)
    return replace(facts, stores=built.choices, folders=(*facts.folders, *built.folders))


def _with(facts: Facts, config: Config, images: Images, weights: Weights) -> Facts:
    """The facts with those on the images and weights of one config."""
    key = images_key(config)
    folders = facts.folders
    if key not in facts.images:
        folders = (*folders, *(str(pixel_folder(config, store.digest)) for store in images.splits.values()))

    known_weights = WeightFacts(weights.mean, weights.std, weights.digests, weights.note)
    return replace(
        facts,
        images={**facts.images, key: images.facts},
        weights={**facts.weights, weights_key(config.model): known_weights},
        folders=folders,
    )


def open_activations(
    cut: Cut, requests: Sequence[StoreRequest], facts: Facts, progress: Progress = no_progress
) -> Activations:
    """The stores that a trial reads: those that `facts` has chosen, the others decided on and built here."""
    built = build_stores([request for request in requests if request.key not in facts.stores], progress)
    choices = {**facts.stores, **built.choices}

    rows, saves = dict[str, list[Rows]](), dict[str, float]()
    for split in dict.fromkeys(request.source.split for request in requests):
        views = [request for request in requests if request.source.split == split]
        stores = [open_store(view.folder, verify=False) for view in views if choices[view.key].used]
        whole = [store for store in stores if store is not None]
        if len(whole) == len(views):
            rows[split] = [store.rows for store in whole]
            saves[split] = _saved_a_pass(whole) / views[0].precision.threads

    reasons = [choices[request.key].reason for request in requests]
    unwritten = sorted({reason for reason in reasons if reason.startswith(UNWRITTEN)})
    of_train = [choices[request.key].reason for request in requests if request.source.split == "train"]
    return Activations(rows, saves, _reason(cut, of_train), tuple(unwritten), built.seconds)


def _saved_a_pass(views: Sequence[Store]) -> float:
    """Seconds of a thread that a pass over one view saves."""
    return sum(len(store.rows) * float(store.about["seconds_per_image"]) for store in views) / len(views)


def _reason(cut: Cut, reasons: Sequence[str]) -> str:
    """Why the training images have stores, or none."""
    if cut.modules == 0:
        return "nothing before the cut is frozen for good"
    return reasons[0] if reasons else "augmented anew each epoch; cache.views=V would store V views"


def build_stores(requests: Sequence[StoreRequest], progress: Progress = no_progress) -> BuiltStores:
    """Decide for each request whether a store pays, and build those that do, in one pass over each source."""
    by_network = defaultdict[str, list[StoreRequest]](list)
    for request in requests:
        by_network[request.network].append(request)

    choices, seconds = dict[str, StoreChoice](), 0.0
    open_stores: list[Store] = []  # what is open is not evicted to make room for the next
    for group in by_network.values():
        known, stores, absent = _look_up(group)
        choices |= known
        open_stores += stores
        if absent:
            decided, stores, spent = _decide_and_build(absent, progress)
            choices |= decided
            open_stores += stores
            seconds += spent

    folders = tuple(str(request.folder) for request in requests if choices[request.key].used)
    return BuiltStores(choices, folders, seconds)


def _look_up(
    requests: Sequence[StoreRequest],
) -> tuple[dict[str, StoreChoice], list[Store], list[StoreRequest]]:
    """What needs no decision, being stored already or not to be; the stores there are; and the other requests."""
    choices, stores, absent = dict[str, StoreChoice](), list[Store](), list[StoreRequest]()
    for request in requests:
        if request.config.cache.mode == "off":
            choices[request.key] = StoreChoice(False, "cache.mode=off")
        elif (store := open_store(request.folder)) is not None:
            stores.append(store)
            choices[request.key] = _STORED_BEFORE
        else:
            absent.append(request)
    return choices, stores, absent


def _decide_and_build(
    requests: Sequence[StoreRequest], progress: Progress
) -> tuple[dict[str, StoreChoice], list[Store], float]:
    """Decide on stores of one network, none of which is there, and build those that pay.

    Returns:
        What became of each request, the stores, and the seconds that computing took.
    """
    deepest = max(requests, key=lambda request: request.cut.modules)
    prefix = _shared_prefix(deepest)
    choices, stores, seconds = dict[str, StoreChoice](), list[Store](), 0.0
    try:
        costs = measure_costs(prefix, deepest.source, deepest.precision, deepest.cache)
        planned, choices = _choose(requests, prefix, costs)

        by_source = defaultdict[str, list[StoreRequest]](list)
        for request in requests:
            if request.folder in planned:
                by_source[request.source.digest].append(request)

        for group in by_source.values():
            size = sum(planned[request.folder] for request in group)
            built, spent, failure = _build(group, prefix, costs, size, progress)
            stores += built
            seconds += spent
            if failure is not None:
                choices |= dict.fromkeys((request.key for request in group), failure)
    except torch.OutOfMemoryError:
        for request in requests:
            is_there = open_store(request.folder, verify=False) is not None
            choices[request.key] = choices.get(request.key, _STORED_BEFORE) if is_there else _NO_MEMORY

    del prefix
    deepest.precision.release()
    return choices, stores, seconds


def _shared_prefix(request: StoreRequest) -> SharedPrefix:
    """The frozen units of a request's network, as they run on its device."""
    model, precision = request.config.model, request.precision
    network = build_network(model, request.weights, request.cut, classes=2)
    assert isinstance(network.prefix, FrozenPrefix)
    first = first_contiguous(model.backbone, request.config.data.size, precision)
    prefix = SharedPrefix.of(network.prefix, first)
    prefix.to(precision.device)
    return prefix


def _choose(
    requests: Sequence[StoreRequest], prefix: SharedPrefix, costs: Costs
) -> tuple[dict[Path, int], dict[str, StoreChoice]]:
    """Which of these stores pay and have room: all views of the same images, or none of them.

    Returns:
        The bytes of those, by folder; and for every store whether it is used.
    """
    view_groups = defaultdict[object, list[StoreRequest]](list)
    for request in requests:
        view_groups[request.view_group].append(request)

    cuts = sorted({request.cut.modules for request in requests})
    shapes: dict[int, dict[int, tuple[tuple[int, ...], str]]] = {}
    planned, choices = dict[Path, int](), dict[str, StoreChoice]()
    for views in sorted(view_groups.values(), key=lambda views: -views[0].cut.modules):  # the smallest first
        first = views[0]
        pixel_bytes = first.source.pixels.images.row_bytes
        if pixel_bytes not in shapes:
            shapes[pixel_bytes] = row_shapes(prefix, first.source, cuts, first.precision)
        shape, dtype = shapes[pixel_bytes][first.cut.modules]
        row_bytes = store_bytes(1, shape, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)

        decision = _pays(views, costs, row_bytes)
        if decision.pays:
            size = len(first.source.pixels.labels) * row_bytes
            wanted = planned | dict.fromkeys((view.folder for view in views), size)
            decision = _with_room(decision, first, wanted, size * len(views))
            if decision.pays:
                planned = wanted
        choices |= dict.fromkeys((view.key for view in views), StoreChoice(decision.pays, decision.reason))

    return planned, choices


def _pays(views: Sequence[StoreRequest], costs: Costs, row_bytes: int) -> Decision:
    """Whether to store the views of some images, their rows being of so many bytes."""
    if views[0].config.cache.mode == "on":
        return Decision(True, "cache.mode=on")

    rows = len(views[0].source.pixels.labels) * len(views)
    passes = sum(view.passes for view in views) / len(views)
    return decide(costs, views[0].cut.modules, row_bytes, rows, passes)


def _with_room(decision: Decision, request: StoreRequest, wanted: Mapping[Path, int], more: int) -> Decision:
    """The decision, unless there is no room for what is `wanted` with these `more` bytes."""
    limit = request.config.cache.max_gb
    try:
        if make_room(request.cache, wanted, int(limit * 1e9)):
            return decision
    except OSError as error:
        return Decision(False, f"{UNWRITTEN}: {error}")
    return Decision(False, f"{more / 1e9:.1f} GB do not fit into cache.max_gb={limit:g}")


def _build(
    requests: Sequence[StoreRequest], prefix: SharedPrefix, costs: Costs, size: int, progress: Progress
) -> tuple[list[Store], float, StoreChoice | None]:
    """Build the stores of one source, `size` bytes together.

    Returns:
        The stores, the seconds that computing took, and what to say where they could not be written.
    """
    source, precision = requests[0].source, requests[0].precision

    def show(done: int, total: int) -> None:
        progress(f"frozen layers, {source.split} images, {size / 1e6:,.0f} MB", done, total)

    folders = {request.cut.modules: request.folder for request in requests}
    try:
        stores, seconds = build(prefix, source, folders, precision, costs, show)
    except OSError as error:
        return [], 0.0, StoreChoice(False, f"{UNWRITTEN}: {error}")
    return list(stores.values()), seconds / precision.threads, None
