"""What trials share, made ready: for a whole sweep before its first trial, and for one trial at its start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune.config import Config
from finetune.network.catalog import with_input
from finetune.network.freeze import Cut
from finetune.network.weights import Weights
from finetune.sharing.facts import Facts, WeightFacts, weights_key
from finetune.sharing.gpu_share import trials_a_gpu
from finetune.sharing.images import Images, images_key, open_images, pixel_folder
from finetune.sharing.plan import UNWRITTEN, build_stores
from finetune.sharing.requests import StoreRequest, feature_requests, is_mixed, preprocess_of, requests_of
from finetune.storage.parallel import Progress, no_progress
from finetune.storage.store import PickedRows, Rows, Store, open_store


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


def prepare(trials: Sequence[tuple[Config, int]], stores: bool, progress: Progress = no_progress) -> Facts:
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
    for config, count in ((with_input(config), count) for config, count in trials):
        images, weights, cut = open_images(config, facts, progress)
        facts = _with(facts, config, images, weights)
        if not stores or not count:
            continue

        preprocess = preprocess_of(config, weights)
        wanted = requests_of(config, images, weights, cut, preprocess)
        if config.model.head.init == "probe":
            wanted += feature_requests(config, images, weights, preprocess)
        for request in wanted:
            before = requests.get(request.key, replace(request, passes=0.0, loads=0.0))
            passes, loads = before.passes + request.passes * count, before.loads + request.loads * count
            requests[request.key] = replace(request, passes=passes, loads=loads)

    built = build_stores(list(requests.values()), progress)
    facts = replace(facts, stores=built.choices, folders=(*facts.folders, *built.folders))
    return replace(facts, trials_per_gpu=trials_a_gpu([config for config, _ in trials], facts))


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
        weights={**facts.weights, weights_key(config): known_weights},
        folders=folders,
    )


def open_activations(
    cut: Cut, requests: Sequence[StoreRequest], facts: Facts, progress: Progress = no_progress
) -> Activations:
    """The stores that a trial reads: those that `facts` has chosen, the others decided on and built here."""
    built = build_stores([request for request in requests if request.key not in facts.stores], progress)
    choices = {**facts.stores, **built.choices}

    rows, saves = dict[str, list[Rows]](), dict[str, float]()
    for split in dict.fromkeys(split for request in requests for split in request.splits):
        views = [request for request in requests if split in request.splits]
        stores = [open_store(view.folder, verify=False) for view in views if choices[view.key].used]
        whole = [store for store in stores if store is not None]
        if len(whole) == len(views):
            positions = views[0].splits[split]
            rows[split] = [store.rows if positions is None else PickedRows(store.rows, positions) for store in whole]
            share = len(rows[split][0]) / len(whole[0].rows)
            saves[split] = share * _saved_a_pass(whole) / views[0].precision.threads

    mixed = any(is_mixed(request.config) for request in requests)
    reasons = [choices[request.key].reason for request in requests]
    unwritten = sorted({reason for reason in reasons if reason.startswith(UNWRITTEN)})
    of_train = [choices[request.key].reason for request in requests if "train" in request.splits]
    return Activations(rows, saves, _reason(cut, of_train, mixed), tuple(unwritten), built.seconds)


def _saved_a_pass(views: Sequence[Store]) -> float:
    """Seconds of a thread that a pass over one view saves."""
    return sum(len(store.rows) * float(store.about["seconds_per_image"]) for store in views) / len(views)


def _reason(cut: Cut, reasons: Sequence[str], mixed: bool) -> str:
    """Why the training images have stores, or none."""
    if cut.modules == 0:
        return "nothing before the cut is frozen for good"
    if mixed:
        return "images are mixed anew in each batch (augment.mixup, augment.cutmix)"
    return reasons[0] if reasons else "augmented anew each epoch; cache.views=V would store V views"
