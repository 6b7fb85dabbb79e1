"""Which requested stores to build: decided by what they cost, and built in few passes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.gpu import is_out_of_memory, room_on_gpu
from finetune.network.network import build_network
from finetune.network.parts import FrozenPrefix, SharedPrefix, first_contiguous
from finetune.sharing.activations import build, measure_costs, row_shapes
from finetune.sharing.cost import Costs, Decision, decide
from finetune.sharing.facts import GPU_FULL, StoreChoice
from finetune.sharing.requests import StoreRequest
from finetune.storage.cache import make_room
from finetune.storage.parallel import Progress, no_progress
from finetune.storage.store import Store, open_store, store_bytes

UNWRITTEN = "the frozen layers run anew in each epoch, for their store could not be written"
_STORED_BEFORE = StoreChoice(True, "stored by an earlier trial")
_NO_MEMORY = StoreChoice(False, f"{UNWRITTEN}: {GPU_FULL}")


@dataclass(frozen=True)
class BuiltStores:
    """What became of requests."""

    choices: Mapping[str, StoreChoice] = field(default_factory=dict)
    """By the name of the store."""
    folders: tuple[str, ...] = ()
    """The folders of those that are used."""
    seconds: float = 0.0
    """Time that it took to compute what was stored here."""


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
    choices, stores, seconds = dict[str, StoreChoice](), list[Store](), 0.0
    prefix: SharedPrefix | None = None
    try:
        prefix = shared_prefix(deepest)
        batch_size = deepest.config.data.batch_size
        costs = measure_costs(prefix, deepest.source, deepest.precision, deepest.cache, batch_size)
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
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        for request in requests:
            is_there = open_store(request.folder, verify=False) is not None
            choices[request.key] = choices.get(request.key, _STORED_BEFORE) if is_there else _NO_MEMORY

    prefix = None
    deepest.precision.release()
    return choices, stores, seconds


def shared_prefix(request: StoreRequest) -> SharedPrefix:
    """The frozen units of a request's network, as they run on its device."""
    model, precision = request.config.model, request.precision
    network = build_network(model, request.weights, request.cut, classes=2, size=request.config.data.size)
    assert isinstance(network.prefix, FrozenPrefix)
    first = first_contiguous(model.backbone, request.config.data.size, precision)
    prefix = SharedPrefix.of(network.prefix, first, precision.dtype)
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
        pixel_bytes = first.source.rows.row_bytes
        if pixel_bytes not in shapes:
            shapes[pixel_bytes] = row_shapes(prefix, first.source, cuts, first.precision)
        shape, dtype = shapes[pixel_bytes][first.cut.modules]
        row_bytes = store_bytes(1, shape, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)

        decision = _pays(views, costs, row_bytes)
        if decision.pays:
            size = len(first.source.rows) * row_bytes
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

    rows = len(views[0].source.rows) * len(views)
    passes = sum(view.passes for view in views) / len(views)
    fits_on_gpu = rows * row_bytes <= room_on_gpu(views[0].precision.device)
    reads = sum(view.loads for view in views) / len(views) if fits_on_gpu else passes
    return decide(costs, views[0].cut.modules, row_bytes, rows, passes, reads)


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
