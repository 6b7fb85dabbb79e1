"""The record of one trial: what came out, what it cost, and all that decided it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from finetune.records.layout import CORRECT, RECORD
from finetune.storage.durable import sealed, unsealed, write_durably

SCHEMA = 1
FREEZE_DEPTH = "freeze_depth"
"""The column of a dashboard that has a trial's freeze depth, and the field of its record."""
VAL_IMAGES = "val/images"
"""The column of a dashboard that has how many validation images decide, as `report.bits.images_behind` counts them."""
STOPPED_BY_WANDB = "stopped by W&B"
"""Why a trial was pruned, where its agent was told so and not why."""
REFUSED = "refused"
"""The column of a dashboard that has why a trial did not begin."""

_ADDED = ("input", "val_images", "val_labels", "probe_val_acc", "precision")
"""Fields that records of older versions lack."""
_LONG = 100_000
"""Characters of `Result.correct` beyond which it lies beside the record."""

STATUSES = ("complete", "pruned", "failed", "interrupted")
"""How a trial can end. An interrupted one goes on when it is started again; the others have ended for good."""


@dataclass(frozen=True)
class Result:
    """What came out of one trial and what it cost. Accuracies are 0..1, times seconds.

    >>> result = Result.load(Path("runs/local/trials/000000000000"))
    >>> result.status, result.freeze_depth, result.reason
    ('failed', 0, 'out of memory <b>')
    """

    key: str
    """The trial's key: twelve hex digits, equal for equal meaningful settings."""
    status: str
    """One of `STATUSES`."""
    reason: str
    """Why the trial did not end well; empty otherwise."""
    freeze_depth: float | None
    """k as a number, also where `all` was asked for; a whole one but where shares are counted. None when the trial
    died before it was known."""
    freeze_unit: str
    seed: int
    val_acc_best: float | None
    """The best epoch's; None for a trial without an epoch, and for a refit, which trains on these images too."""
    best_epoch: int | None
    """Counted from 0."""
    trained_parameters: int
    params: dict[str, Any]
    """The overrides this trial was given, by dotted key: in a sweep, the swept and the fixed ones."""
    config: dict[str, Any] = field(default_factory=dict)
    """Every setting, by dotted key."""
    input: dict[str, Any] = field(default_factory=dict)
    """The network's input: `size` in pixels, `interpolation`, and `mean` and `std` per channel. Empty in records of
    older versions, whose `config` has the first two."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One dict an epoch: `epoch`, `train/loss`, `train/acc`, `val/loss`, `val/acc`, `lr`, and `trainer.metric`."""
    correct: list[str] = field(default_factory=list)
    """Which validation images each epoch got right, as `records.correct.unpack` reads it; the images are those of the
    digests `dataset` and `split`. Empty in records of older versions, and of a refit."""
    val_images: int = 0
    """How many validation images there are; 0 in records of older versions."""
    val_labels: str = ""
    """The classes of the validation images, as `records.correct.unpack_labels` reads them; empty where the trial
    follows accuracy or the loss, which do not ask for them."""
    probe_val_acc: float | None = None
    """With `model.head.init=probe`: the accuracy of the fitted head before anything else was trained."""
    last: dict[str, float] = field(default_factory=dict)
    """The last epoch's figures, and `test/acc` where there is a test set."""
    classes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: `data`, `setup`, `train`, `total`, and `probe`, with the features that it needs."""
    images_per_second: float | None = None
    """Training images over the time of the training phase, validation included."""
    peak_memory_mb: float | None = None
    """MiB of the device that trained: the GPU's allocator, or the process's resident set."""
    digests: dict[str, str] = field(default_factory=dict)
    """`weights`, `frozen`, `dataset`, `split`, `augmentation`."""
    cache: dict[str, Any] = field(default_factory=dict)
    """`mode`; `train` and `val`, each `stored` or `computed`; `reason`; `saved_seconds`, at the speed of this machine;
    `views` where they are fixed."""
    versions: dict[str, str] = field(default_factory=dict)
    host: str = ""
    device: str = ""
    precision: str = ""
    """The number format it computed in, `32`, `bf16` or `fp16`, whatever was asked for; empty in older records."""
    warnings: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    @property
    def accuracy(self) -> float:
        """`val_acc_best` to sort and plot by: 0 where there is none."""
        return self.val_acc_best or 0.0

    @property
    def number_format(self) -> str:
        """`precision` as people say it: `32-bit`, `bf16` or `fp16`."""
        return "32-bit" if self.precision == "32" else self.precision

    @property
    def total_seconds(self) -> float:
        """The trial's time, all phases together; 0 where it never began."""
        return self.seconds.get("total", 0.0)

    def figures(self) -> dict[str, Any]:
        """What a dashboard shows of a trial besides its metrics, by name of the column."""
        return {
            **{f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()},
            "images_per_second": self.images_per_second,
            "peak_memory_mb": self.peak_memory_mb,
            "trained_parameters": self.trained_parameters,
            FREEZE_DEPTH: self.freeze_depth,
            **({} if self.probe_val_acc is None else {"probe/val_acc": self.probe_val_acc}),
        }

    def save(self, folder: Path) -> None:
        """Write `result.json` into `folder`, whole or not at all, and before it `correct.json` if that is long."""
        values = asdict(self)
        if sum(map(len, self.correct)) > _LONG:
            write_durably(folder / CORRECT, sealed({"key": self.key, "correct": values.pop("correct")}))
        write_durably(folder / RECORD, sealed(values))

    @classmethod
    def load(cls, folder: Path) -> "Result":
        """Read `result.json` of `folder`.

        Raises:
            ValueError: it is not a record of this schema; the message names the file.
            FileNotFoundError: there is none.
        """
        path = folder / RECORD
        try:
            raw = unsealed(path.read_bytes())
            if raw["schema"] != SCHEMA or raw["status"] not in STATUSES:
                raise ValueError(f"schema {raw['schema']}, status {raw['status']}")
            if "correct" not in raw:
                raw["correct"] = _load_correct(folder, raw["key"])
            return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw or f.name not in _ADDED})
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a record of schema {SCHEMA}: {error}") from error


def _load_correct(folder: Path, key: str) -> list[str]:
    """What lies beside the record of a trial; nothing beside those of older versions, or where it was damaged."""
    try:
        raw = unsealed((folder / CORRECT).read_bytes())
        return list(raw["correct"]) if raw["key"] == key else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def outcome(result: Result) -> dict[str, Any]:
    """The part of a record that repeating the trial must reproduce: all but time, place and cost."""
    varying = {"seconds", "images_per_second", "peak_memory_mb", "host", "device", "versions", "config", "cache"}
    return {name: value for name, value in asdict(result).items() if name not in varying}
