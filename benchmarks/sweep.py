"""A whole sweep against the naive one and the floor: `python benchmarks/sweep.py [--weights FILE] [--json FILE]`.

5 freeze depths x 3 learning rates x 2 heads, 5 epochs, 1,000 training and 400 validation JPEGs of about 500 px in ten
classes, resized to 128. About 25 minutes on 2 cores for 32-bit, and 20 more for bf16 where the processor has it, by
sampling: in turn, for each depth and format, one epoch of a naive trial, of two of ours side by side and of the bare
loop, on 320 + 128 of the images. From the seconds of that epoch and of the start-up the totals are made: 6 trials a
depth, 5 epochs a trial, 1,000 + 400 images an epoch. What is prepared once is measured on all images. The race is run
whole, with its repeats, on 250 + 400, and its epochs are counted at the price of full ones; that takes longest.

`naive_over_race` is the grid over the race alone, `naive_over_verdict` over the race and its repeats, and
`naive_seeds_over_verdict` has three seeds of the grid, as people need who want to know how sure they can be.
`naive_over_shared` has naive in 32-bit, as people run it; `naive_alike_over_shared` has it in the format of ours.
"""

import argparse
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import (
    CORES,
    DEPTHS,
    Figure,
    add_precisions,
    base,
    make_images,
    print_rows,
    run_naive,
    run_trial,
    weights_file,
    workplace,
    write_json,
)
from floor import suffix_seconds

from finetune.records.ranking import MARGIN
from finetune.sweep.prepare import check_and_prepare
from finetune.sweep.run import run_sweep
from finetune.sweep.spec import SweepSpec, read_sweep
from finetune.sweep.state import Options

RATES, HEADS, EPOCHS, TRAIN, VAL, SIZE = (0.0003, 0.001, 0.003), ("[]", "[256]"), 5, 1000, 400, 128
PER_DEPTH = len(RATES) * len(HEADS)
NAIVE_SEEDS = 3
SAMPLE = (320, 128)
"""Images whose epochs are timed, a fixed part of all of them."""
SCALE = TRAIN / SAMPLE[0]
FILE = """
name: sweep
method: grid
metric: {{name: val/acc_best, goal: maximize}}
parameters:
  model.freeze_depth: {{values: {depths}}}
  optim.lr: {{values: {rates}}}
  model.head.hidden: {{values: {heads}}}
"""


@dataclass
class Ran:
    """Trials, whole or not."""

    trials: int = 0
    epochs: int = 0


@dataclass
class Measured:
    """One number format."""

    precision: str
    sampled: tuple[str, ...]
    """Settings of the trials that are timed."""
    shared: str
    """What these share."""
    prepared: float
    """Seconds to decode and to store for all images."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    race: dict[int, Ran] = field(default_factory=dict)
    """What ran of the race, by freeze depth,"""
    verdict: dict[int, Ran] = field(default_factory=dict)
    """with its repeats,"""
    best: dict[str, Any] = field(default_factory=dict)
    """and the best it found."""


@dataclass(frozen=True)
class Images:
    """Folders of images: all of them, those whose epochs are timed, and those of the race."""

    whole: Path
    sample: Path
    race: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="ResNet50's, as .pth; random ones cost the same and learn less")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all depths")
    parser.add_argument("--race-images", type=int, default=250, help="training images of the race; 0 for no race")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", type=Path, help="keep images and stores here")
    add_precisions(parser)
    given = parser.parse_args()
    with workplace(given.scratch) as scratch:
        images = Images(
            make_images(scratch / "images", TRAIN, VAL),
            make_images(scratch / "sample", *SAMPLE),
            make_images(scratch / "few", given.race_images, VAL),
        )
        weights = weights_file(given.weights, "resnet50", scratch)
        formats = [prepare(precision, images, weights, scratch) for precision in given.precision]
        for i in range(given.repeats):
            for name in DEPTHS:
                add_round(formats, name, i, images.sample, weights, scratch)
        for measured in formats if given.race_images else ():
            count_race(measured, images.race, weights, scratch)
    write_json(given.json, {measured.precision: report(measured) for measured in formats})


def prepare(precision: str, images: Images, weights: Path, scratch: Path) -> Measured:
    """Decode, and fill the stores of all images, whose time counts, then those of the sample."""
    cache = scratch / f"cache-{precision}"

    def check(settings: tuple[str, ...]) -> str:
        return check_and_prepare([([*settings, f"model.freeze_depth={k}"], PER_DEPTH) for k in DEPTHS.values()]).shared

    start = time.perf_counter()
    check(base(images.whole, weights, cache, SIZE, EPOCHS, precision))
    prepared = time.perf_counter() - start
    print(f"{precision}: prepared in {prepared:.1f} s", flush=True)

    sampled = base(images.sample, weights, cache, SIZE, EPOCHS, precision)
    return Measured(precision, sampled, check(sampled), prepared)


def add_round(formats: list[Measured], name: str, number: int, sample: Path, weights: Path, scratch: Path) -> None:
    """Time one depth in each format: naive, ours, and the bare loop, in turn."""
    depth = DEPTHS[name]
    plain: dict[str, float] = {}
    for measured in formats:
        precision = measured.precision
        out = scratch / f"naive-{precision}-{name}-{number}.json"
        settings = {"depth": depth, "stop_after": 1, "epochs": EPOCHS, "size": SIZE, "precision": precision}
        spent, naive = run_naive(sample, weights, out, **settings)
        ours = run_trial(
            measured.sampled, depth, measured.shared, scratch / f"ours-{precision}-{number}", name == "all"
        )
        bare = suffix_seconds("resnet50", precision, depth, SIZE, *SAMPLE, CORES)

        seconds = naive["epochs"][0]["seconds"]
        alike = {"epoch": SCALE * seconds, "other": spent.wall - seconds}
        plain = plain or alike  # of the first format, which is 32-bit where that is measured
        row = {
            "depth": name,
            "naive_epoch": plain["epoch"],
            "naive_other": plain["other"],
            "alike_epoch": alike["epoch"],
            "alike_other": alike["other"],
            "shared_epoch": SCALE * ours.epoch,
            "shared_other": ours.other,
            "floor_epoch": SCALE * bare,
            "naive_acc": naive["epochs"][0]["val/acc"],
            "shared_acc": ours.accuracy,
        }
        measured.rounds.append(row)
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        print(precision, rounded, flush=True)


def count_race(measured: Measured, data: Path, weights: Path, scratch: Path) -> None:
    """Run the race with its repeats: what ran at each depth, and the best it found."""
    file = scratch / "race.yaml"
    file.write_text(FILE.format(depths=list(DEPTHS.values()), rates=list(RATES), heads=f"[{', '.join(HEADS)}]"))
    cache = scratch / f"cache-{measured.precision}"
    spec: SweepSpec = read_sweep(file, base(data, weights, cache, SIZE, EPOCHS, measured.precision))
    sweep = run_sweep(spec, scratch / f"race-{measured.precision}", Options(workers=CORES, margin=MARGIN))

    measured.race = {depth: Ran() for depth in DEPTHS.values()}
    measured.verdict = {depth: Ran() for depth in DEPTHS.values()}
    for result in sweep.results:
        assert result.freeze_depth is not None
        for ran in (measured.verdict, measured.race) if result.seed == 0 else (measured.verdict,):
            ran[int(result.freeze_depth)].epochs += len(result.history)
            ran[int(result.freeze_depth)].trials += bool(result.history)
    assert sweep.best is not None
    measured.best = {"freeze_depth": sweep.best.freeze_depth, "val_acc_best": sweep.best.val_acc_best}


def report(measured: Measured) -> dict[str, Any]:
    """Print the totals of each round and their ratios, and give them back."""
    rounds = measured.rounds
    totals = [totals_of(measured, rounds[i : i + len(DEPTHS)]) for i in range(0, len(rounds), len(DEPTHS))]
    ratios = {
        name: Figure(tuple(total[above] / total[below] for total in totals))
        for name, above, below in (
            ("naive_over_shared", "naive", "shared"),
            ("naive_alike_over_shared", "alike", "shared"),
            ("naive_over_race", "naive", "race"),
            ("naive_over_verdict", "naive", "verdict"),
            ("naive_seeds_over_verdict", "naive_seeds", "verdict"),
            ("shared_over_floor", "shared", "floor"),
        )
        if below in totals[0]
    }
    print_rows(
        f"{measured.precision}: seconds of an epoch, and of all that is no epoch, of one trial",
        [
            "frozen",
            "naive",
            "naive, same format",
            "ours",
            "bare loop",
            "naive start",
            "our start",
            "naive acc",
            "our acc",
        ],
        [
            [
                row["depth"],
                *(
                    f"{row[key]:.2f}"
                    for key in (
                        *("naive_epoch", "alike_epoch", "shared_epoch"),
                        *("floor_epoch", "naive_other", "shared_other"),
                    )
                ),
                f"{row['naive_acc']:.3f}",
                f"{row['shared_acc']:.3f}",
            ]
            for row in rounds
        ],
    )
    print_rows("the sweep, seconds of wall clock", list(totals[0]), [[f"{v:.0f}" for v in t.values()] for t in totals])
    print_rows("ratios", ["what", "median (spread)"], [[name, figure] for name, figure in ratios.items()])
    if measured.race:
        raced, in_all = (sum(ran.epochs for ran in part.values()) for part in (measured.race, measured.verdict))
        of_grid = EPOCHS * PER_DEPTH * len(DEPTHS)
        print(f"the race ran {raced} epochs, with repeats {in_all}; a grid has {of_grid}; best {measured.best}")
    return {
        **{name: figure.median for name, figure in ratios.items()},
        "spread": {name: figure.record() for name, figure in ratios.items()},
        "totals": totals,
        "rounds": rounds,
        "prepared_seconds": measured.prepared,
        "race": {
            **{
                name: {depth: asdict(ran) for depth, ran in part.items()}
                for name, part in (("explored", measured.race), ("with repeats", measured.verdict))
            },
            "best": measured.best,
        },
        "how": f"epochs of {SAMPLE} images, scaled to {TRAIN} + {VAL}, 6 trials a depth and 5 epochs a trial",
    }


def totals_of(measured: Measured, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of whole sweeps, from one round of all depths."""

    def every_trial(side: str) -> float:
        return sum(PER_DEPTH * (row.get(f"{side}_other", 0.0) + EPOCHS * row[f"{side}_epoch"]) for row in rows)

    totals = {
        "naive": every_trial("naive"),
        "alike": every_trial("alike"),
        "shared": measured.prepared + every_trial("shared") / CORES,
        "floor": measured.prepared + every_trial("floor") / CORES,
    }
    if measured.race:
        totals["naive_seeds"] = NAIVE_SEEDS * totals["naive"]
        for name, part in (("race", measured.race), ("verdict", measured.verdict)):
            ran = [part[DEPTHS[row["depth"]]] for row in rows]
            seconds = sum(
                one.trials * row["shared_other"] + one.epochs * row["shared_epoch"]
                for one, row in zip(ran, rows, strict=True)
            )
            totals[name] = measured.prepared + seconds / CORES
    return totals


if __name__ == "__main__":
    main()
