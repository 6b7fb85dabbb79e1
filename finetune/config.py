"""What a run is: the typed schema, with unit and range beside each field. Imports no torch."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, cast

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "narrow_resnet50", "cnn5")
METRICS = ("val/acc", "val/balanced_acc", "val/f1", "val/auroc", "val/loss")
FREEZE_UNITS = ("block", "stage", "layer", "tensor", "share")
TIMM = "timm/"
"""What the names of timm's networks begin with here."""
UNSET_WEIGHTS = "IMAGENET1K_V1"
"""The weights where none are named; for a network of timm's that means its own."""
TRIALS_PER_GPU = "FINETUNE_TRIALS_PER_GPU"
"""Environment variable: how many trials share this one's GPU; a sweep sets it."""


def _one_of(default: str, choices: Sequence[str]) -> Any:
    return field(default=default, metadata={"choices": tuple(choices)})


def _number(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    unset: float | None = None,
) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "above": above, "unset": unset})


@dataclass
class HeadConfig:
    """The layers after the backbone."""

    hidden: list[int] = field(default_factory=list, metadata={"low": 1, "high": 65536})
    """Widths of the dense layers before the softmax layer; `[]` is a linear head."""
    dropout: float = _number(0.0, low=0, high=0.95)
    """Share of features dropped before every dense layer, 0..0.95."""
    activation: str = _one_of("relu", ("relu", "gelu", "silu", "tanh"))
    init: str = _one_of("random", ("random", "probe"))
    """How the head starts: at random, or fitted to the features of the pretrained network (linear probing, then
    fine-tuning), which takes seconds."""


@dataclass
class ModelConfig:
    """The network and where it is cut."""

    backbone: str = "resnet50"
    """A classification network of torchvision, `timm/NAME` or `timm/NAME.TAG`, or narrow_resnet50, vit_narrow,
    convnext_narrow or cnn5."""
    weights: str = UNSET_WEIGHTS
    """A weight name (torchvision's, or SHAPES60_V1 for narrow networks), `pretrained` for the network's own, a .pth or
    .safetensors path, or `none`. What is the default here stands for `pretrained` where the network is timm's."""
    freeze_depth: int | float | str = "all"
    """Units frozen, counted from the input: 0 trains everything, the maximum or `all` trains the head alone."""
    freeze_unit: str = _one_of("block", FREEZE_UNITS)
    train_units: list[int] | None = field(default=None, metadata={"low": 0})
    """A window `[a, b]` instead of a freeze depth: units a to b - 1 train, counted as k counts them, and the head; what
    lies before and after them is frozen. null trains all after `freeze_depth`."""
    rest: str = _one_of("pretrained", ("pretrained", "scratch"))
    """How the layers after the frozen ones start."""
    frozen_bn: str = _one_of("eval", ("eval", "stats", "train"))
    """Frozen BatchNorm: fixed; statistics follow the data; or statistics follow and the affine part trains."""
    head: HeadConfig = field(default_factory=HeadConfig)


@dataclass
class DataConfig:
    """The images, how they are split and what size they become."""

    root: str | None = None
    """A folder of class folders, with or without train/ and val/; the name `shapes10` is the embedded set."""
    csv: str | None = None
    """A file of `path,label[,split]` lines instead of a folder; paths are relative to `root`, else to the file."""
    csv_columns: str | None = None
    """Which column of it is what, where their names do not say: `path:image_id,label:dx`, and `split:…`."""
    train_dir: str | None = None
    """The folder of the training images, in root or absolute, where its name does not say so; `.` is root itself."""
    val_dir: str | None = None
    """The folder of the validation images, likewise."""
    test_dir: str | None = None
    """The folder of the test images, likewise."""
    links: str = _one_of("follow", ("follow", "refuse"))
    """What a symbolic link below root does: lead to what is read, wherever that is, or stop before training."""
    use_val_as: str = _one_of("val", ("val", "test"))
    """What root/val is: the validation set, or the test set with validation split off train/."""
    groups: str | None = None
    """Which images belong together (of one patient, site or video) and so into one split: a column of `csv`, or a
    regular expression on file names, whose parentheses hold the group."""
    val_fraction: float = _number(0.2, above=0, high=0.9)
    """Share of the training images split off for validation where no val/ is given."""
    folds: int | None = _number(None, low=2, high=100)
    """Where no val/ is given: into so many parts the training images are split, each with every class at its share;
    one of them validates and the others train. null splits off `val_fraction` instead."""
    fold: int = _number(0, low=0)
    """Which of the folds validates, from 0 on."""
    split_seed: int = _number(0, low=0)
    size: int = _number(0, low=8, high=2048, unset=0)
    """Height and width of the network's input, pixels; 0 is what its weights were trained with (224 for ResNets)."""
    resize: str = _one_of("squash", ("squash", "crop", "pad"))
    interpolation: str = _one_of("auto", ("auto", "nearest", "bilinear", "bicubic", "lanczos"))
    """How images are resized; `auto` is as for the training of the weights (bilinear for ResNets)."""
    on_bad: str = _one_of("refuse", ("refuse", "skip"))
    """What an unreadable image does: stop before training, or be left out with a warning."""
    on_leak: str = _one_of("warn", ("warn", "refuse"))
    """What an image that lies in two splits, byte for byte, does: be counted in the report, or stop before training."""
    class_weights: Any = "none"
    """How much the images of a class count in the training loss: `none` is alike; `balanced` makes the classes count
    alike, however many images they have; or a list of numbers above 0, one a class, in the order of their names."""
    batch_size: int = _number(32, low=1)
    workers: int = _number(0, low=0)
    """Threads that decode images when the pixel store is built; 0 is one per core."""


@dataclass
class AugmentConfig:
    """Random changes to training images, drawn anew for each image and epoch."""

    flip: float = _number(0.0, low=0, high=1)
    """Probability of a mirror image."""
    min_area: float = _number(1.0, above=0, high=1)
    """Random resized crop: the smallest share of the image's area kept, 0..1; 1 is no crop."""
    rotate: float = _number(0.0, low=0, high=180)
    """Largest rotation, degrees."""
    color: float = _number(0.0, low=0, high=1)
    """Largest relative change of brightness, contrast and saturation."""
    erase: float = _number(0.0, low=0, high=1)
    """Probability of a rectangle of 2 to 20 % of the area being blanked."""
    mixup: float = _number(0.0, low=0)
    """Mix the images of a batch, and their labels, in a share drawn from Beta(mixup, mixup); 0 is off. With `cutmix`,
    each batch gets one of the two."""
    cutmix: float = _number(0.0, low=0)
    """Paste a rectangle of another image of the batch, of a share of the area drawn from Beta(cutmix, cutmix), and mix
    the labels alike; 0 is off."""


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    name: str = _one_of("adamw", ("adamw", "sgd"))
    lr: float = _number(1e-3, above=0)
    """Peak learning rate."""
    head_lr: float = _number(1.0, above=0)
    """Factor on `lr` for the head: a new one may need more than pretrained layers bear."""
    layer_decay: float = _number(1.0, above=0, high=1)
    """Factor on `lr` for the last unit of the backbone, once more for the one before it, and so on down to the cut;
    1 is one rate for all."""
    weight_decay: float = _number(0.01, low=0)
    decay_norms: bool = True
    """Whether weight decay is for biases and normalisation too; false spares them, as timm does."""
    momentum: float = _number(0.9, low=0, high=1)
    """SGD's Nesterov momentum; AdamW ignores it."""
    schedule: str = _one_of("cosine", ("cosine", "constant"))
    warmup: float = _number(0.05, low=0, high=1)
    """Share of optimizer steps spent warming up, 0..1."""
    label_smoothing: float = _number(0.0, low=0, high=0.9)


@dataclass
class TrainerConfig:
    """How long and on what."""

    epochs: int = _number(5, low=1)
    precision: str = _one_of("auto", ("auto", "32", "bf16", "fp16"))
    """`auto` is bf16 on a GPU that has it, and fp16 on one that has tensor cores for that alone (V100, T4, RTX 20); on
    a processor with bf16, what is measured to be faster; else 32."""
    metric: str = _one_of("val/acc", METRICS)
    """What chooses the best epoch, and so the model that is kept, stops early, and is compared in sweeps and reports:
    top-1 accuracy; the mean recall of the classes; their mean F1 score; the mean area under their ROC curves, each
    class against the rest; or the loss, unweighted, of which less is better."""
    patience: int | None = _number(None, low=1)
    """Epochs without a better `metric` before stopping early; null never stops."""
    grad_clip: float | None = _number(None, above=0)
    """Largest gradient norm; null does not clip."""
    accelerator: str = _one_of("auto", ("auto", "cpu", "gpu"))
    """`gpu` is NVIDIA's, AMD's or Apple's; `auto` uses one where it can be used, else the CPU."""
    graphs: str = _one_of("auto", ("auto", "off"))
    """`auto` has an NVIDIA or AMD GPU take the steps of a trial on stored activations as one CUDA graph each, where a
    check at the start shows the same results; `off` never does."""
    save_every: float = _number(5.0, low=0)
    """Seconds between two saves of an unfinished trial's state, from which it goes on after a kill; more where saving
    would take over 2 % of the time. 0 saves after each batch."""
    refit: bool = False
    """Train on the validation images too and keep the last epoch: for settings that are chosen already. The record then
    has no val_acc_best, for the validation images say nothing any more."""


@dataclass
class CacheConfig:
    """What trials share, and where it lives."""

    dir: str = "${oc.env:FINETUNE_CACHE,${oc.env:HOME,.}/.cache/finetune}"
    mode: str = _one_of("auto", ("auto", "on", "off"))
    """Store the frozen part's activations: where that is cheaper than computing them again, always, or never."""
    views: int | None = _number(None, low=1)
    """Augmented views of each training image, repeated in turn, which can be stored; null draws one an epoch."""
    max_gb: float = _number(20.0, above=0)
    """Disk for stores, 10^9 bytes; the least recently used go first."""


@dataclass
class LoggerConfig:
    """Where metrics go besides result.json."""

    name: str = _one_of("auto", ("auto", "none", "csv", "wandb", "tensorboard", "mlflow"))
    """`auto` is wandb under a W&B agent, else none."""
    mode: str = _one_of("online", ("online", "offline"))
    """Of wandb."""
    project: str = "finetune"
    """The project of wandb, or the experiment of mlflow."""


@dataclass
class Config:
    """One run."""

    seed: int = _number(0, low=0, high=2**32 - 1)
    out: str = "runs/${now:%Y-%m-%d}/${trial_key:}"
    """The run's folder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def freeze_depth_number(freeze_depth: int | float | str, deepest: float = math.inf) -> float:
    """A freeze depth as a number to compare and sort by: `all` is the `deepest`, wherever that lies.

    >>> freeze_depth_number("all", deepest=17), freeze_depth_number(4)
    (17, 4)

    Raises:
        ValueError: it is neither a number nor `all`.
    """
    if freeze_depth == "all":
        return deepest
    if isinstance(freeze_depth, str):
        raise ValueError(f"{freeze_depth!r} is neither a number nor all")
    return freeze_depth


NOT_MEANINGFUL = (
    "out",
    "cache.dir",
    "cache.mode",
    "cache.max_gb",
    "logger",
    "data.workers",
    "data.on_leak",
    "data.links",
    "trainer.graphs",
    "trainer.save_every",
)
"""Keys, or groups of them, that change where or how fast a run happens and not what comes out."""


ADDED = (
    "data.csv_columns",
    "data.train_dir",
    "data.val_dir",
    "data.test_dir",
    "data.folds",
    "data.fold",
    "data.groups",
    "data.class_weights",
    "trainer.metric",
    "optim.head_lr",
    "optim.layer_decay",
    "optim.decay_norms",
    "model.head.init",
    "model.train_units",
    "augment.mixup",
    "augment.cutmix",
)
"""Keys that the first release did not have; at its default none of them is part of a trial's key, which so stays."""


PLACES = ("data.root", "data.csv", "model.weights")
"""Keys that may say where files lie. What those hold has digests, so the same files elsewhere are the same data."""


def flat(config: object, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key, in schema order: the names of overrides, sweep files and W&B columns.

    >>> flat(Config())["optim.lr"]
    0.001
    """
    return {key: value for key, value, _ in leaves(config, prefix)}


def trial_key(config: Config) -> str:
    """Twelve hex digits that name what this run computes: equal for equal meaningful settings, whoever runs it."""
    return key_of(flat(config))


def key_of(settings: Mapping[str, Any]) -> str:
    """The trial key of flat settings."""
    settings = {**settings, **network_defaults(settings)}
    meaningful = {key: value for key, value in settings.items() if is_meaningful(key)}
    unset = {key for key in ADDED if meaningful.get(key) == _DEFAULTS[key]}
    return digest_of({key: value for key, value in meaningful.items() if key not in unset})


def network_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings that were left to the network come to, as far as that is known without building it.

    The first networks have what they had before there were others, so that their trials keep their keys.
    """
    backbone = str(settings.get("model.backbone"))
    if backbone in BACKBONES:
        known: dict[str, tuple[Any, Any]] = {"data.size": (0, 224), "data.interpolation": ("auto", "bilinear")}
    elif backbone.startswith(TIMM):
        known = {"model.weights": (UNSET_WEIGHTS, "pretrained")}
    else:
        known = {}
    return {key: value for key, (unset, value) in known.items() if key in settings and settings[key] == unset}


def is_meaningful(key: str) -> bool:
    """Whether a setting changes what comes out of a trial."""
    return not f"{key}.".startswith(tuple(f"{name}." for name in NOT_MEANINGFUL))


def limits(key: str) -> tuple[float, float]:
    """The least and the largest number that a setting may be; infinite where there is no limit.

    >>> limits("data.batch_size"), limits("optim.momentum")
    ((1, inf), (0, 1))
    """
    metadata: Mapping[str, Any] = _METADATA.get(key, {})
    low, high = metadata.get("low"), metadata.get("high")
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def typed(key: str, value: Any) -> Any:
    """A setting's value as the schema holds it once composed: 1 for a learning rate is 1.0.

    Raises:
        ValueError: text that is not the number it has to be.
    """
    kind = _TYPES[key]
    if value is None or isinstance(value, bool | list):
        return value
    if kind in (str, str | None):
        return str(value)
    if kind in (float, float | None):
        return float(value)
    if kind in (int, int | None) and isinstance(value, str):
        return int(value)
    return value


def digest_of(value: object) -> str:
    """Twelve hex digits of a JSON-able value; key order does not matter.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True

    Raises:
        ValueError: a number in it is not finite.
    """
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, Any, "Field[Any]"]]:
    """Dotted key, value and schema field of every setting."""
    for setting in fields(cast(Any, config)):
        value = getattr(config, setting.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{setting.name}.")
        else:
            yield f"{prefix}{setting.name}", value, setting


_TYPES = {key: setting.type for key, _, setting in leaves(Config())}
_METADATA = {key: setting.metadata for key, _, setting in leaves(Config())}
_DEFAULTS = flat(Config())
