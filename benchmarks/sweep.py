"""A whole sweep against the naive one and the floor: `python benchmarks/sweep.py [--weights FILE] [--json FILE]`.

5 freeze depths x 3 learning rates x 2 heads, 5 epochs, 1,000 training and 400 validation JPEGs of about 500 px in ten
classes, resized to 128. About 25 minutes on 2 cores, by sampling: in turn, for each depth, one epoch of a naive trial,
of two of ours side by side and of the bare loop, on 320 + 128 of the images. From the seconds of that epoch and of the
start-up the totals are made: 6 trials a depth, 5 epochs a trial, 1,000 + 400 images an epoch. What is prepared once is
measured on all images. The race is run whole on 250 + 400, and its epochs are counted at the price of full ones.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

from common import (
    CORES,
    DEPTHS,
    Figure,
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


def count_race(data: Path, weights: Path, scratch: Path) -> tuple[dict[int, int], dict[int, int], dict[str, Any]]:
    """Run the race: epochs and trials by depth, and the best it found."""
    file = scratch / "race.yaml"
    file.write_text(FILE.format(depths=list(DEPTHS.values()), rates=list(RATES), heads=f"[{', '.join(HEADS)}]"))
    spec: SweepSpec = read_sweep(file, base(data, weights, scratch / "cache", SIZE, EPOCHS))
    sweep = run_sweep(spec, scratch / "race", Options(workers=CORES, margin=MARGIN))
    epochs, starts = dict.fromkeys(DEPTHS.values(), 0), dict.fromkeys(DEPTHS.values(), 0)
    for result in sweep.results:
        assert result.freeze_depth is not None
        epochs[result.freeze_depth] += len(result.history)
        starts[result.freeze_depth] += bool(result.history)
    assert sweep.best is not None
    best = {"freeze_depth": sweep.best.freeze_depth, "val_acc_best": sweep.best.val_acc_best}
    return epochs, starts, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="ResNet50's, as .pth; random ones cost the same and learn less")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all depths")
    parser.add_argument("--race-images", type=int, default=250, help="training images of the race")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", type=Path, help="keep images and stores here")
    given = parser.parse_args()
    with workplace(given.scratch) as scratch:
        data = make_images(scratch / "images", TRAIN, VAL)
        few = make_images(scratch / "few", given.race_images, VAL)
        sample = make_images(scratch / "sample", *SAMPLE)
        weights = weights_file(given.weights, "resnet50", scratch)
        fixed = base(data, weights, scratch / "cache", SIZE, EPOCHS)
        start = time.perf_counter()
        check_and_prepare([([*fixed, f"model.freeze_depth={depth}"], PER_DEPTH) for depth in DEPTHS.values()])
        prepared = time.perf_counter() - start
        sampled = base(sample, weights, scratch / "cache", SIZE, EPOCHS)
        configs = [([*sampled, f"model.freeze_depth={depth}"], PER_DEPTH) for depth in DEPTHS.values()]
        shared = check_and_prepare(configs).shared
        rounds = []
        for i, (name, depth) in itertools.product(range(given.repeats), DEPTHS.items()):
            out = scratch / f"naive-{name}-{i}.json"
            spent, naive = run_naive(sample, weights, out, depth=depth, stop_after=1, epochs=EPOCHS, size=SIZE)
            ours = run_trial(sampled, depth, shared, scratch / f"ours-{i}", whole=name == "all")
            bare = suffix_seconds("resnet50", depth, SIZE, *SAMPLE, CORES)
            row = {
                "depth": name,
                "naive_epoch": SCALE * naive["epochs"][0]["seconds"],
                "naive_other": spent.wall - naive["epochs"][0]["seconds"],
                "shared_epoch": SCALE * ours.epoch,
                "shared_other": ours.other,
                "floor_epoch": SCALE * bare,
                "naive_acc": naive["epochs"][0]["val/acc"],
                "shared_acc": ours.accuracy,
            }
            rounds.append(row)
            print(
                {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True
            )
        epochs, starts, best = count_race(few, weights, scratch)
    report(rounds, prepared, epochs, starts, best, given.json)


def report(
    rounds: list[dict[str, Any]],
    prepared: float,
    epochs: dict[int, int],
    starts: dict[int, int],
    best: dict[str, Any],
    file: Path | None,
) -> None:
    """Totals of each round, then their ratios."""
    totals = []
    for first in range(0, len(rounds), len(DEPTHS)):
        of_round = rounds[first : first + len(DEPTHS)]
        naive = sum(PER_DEPTH * (row["naive_other"] + EPOCHS * row["naive_epoch"]) for row in of_round)
        trials = sum(PER_DEPTH * (row["shared_other"] + EPOCHS * row["shared_epoch"]) for row in of_round) / CORES
        floor = sum(PER_DEPTH * EPOCHS * row["floor_epoch"] for row in of_round) / CORES
        raced = sum(
            starts[DEPTHS[row["depth"]]] * row["shared_other"] + epochs[DEPTHS[row["depth"]]] * row["shared_epoch"]
            for row in of_round
        )
        totals.append(
            {
                "naive": naive,
                "shared": prepared + trials,
                "floor": prepared + floor,
                "same_answer": prepared + raced / CORES,
            }
        )
    ratios = {
        "naive_over_shared": Figure(tuple(t["naive"] / t["shared"] for t in totals)),
        "naive_over_same_answer": Figure(tuple(t["naive"] / t["same_answer"] for t in totals)),
        "shared_over_floor": Figure(tuple(t["shared"] / t["floor"] for t in totals)),
    }
    print_rows(
        "seconds of an epoch, and of all that is no epoch, of one trial",
        ["frozen", "naive", "ours", "bare loop", "naive start", "our start", "naive acc", "our acc"],
        [
            [
                row["depth"],
                *(
                    f"{row[key]:.2f}"
                    for key in ("naive_epoch", "shared_epoch", "floor_epoch", "naive_other", "shared_other")
                ),
                f"{row['naive_acc']:.3f}",
                f"{row['shared_acc']:.3f}",
            ]
            for row in rounds
        ],
    )
    print_rows("the sweep, seconds of wall clock", list(totals[0]), [[f"{v:.0f}" for v in t.values()] for t in totals])
    print_rows("ratios", ["what", "median (spread)"], [[name, figure] for name, figure in ratios.items()])
    ran, all_of_them = sum(epochs.values()), EPOCHS * PER_DEPTH * len(DEPTHS)
    print(f"prepared in {prepared:.0f} s; the race ran {ran} of {all_of_them} epochs, best {best}")
    write_json(
        file,
        {
            **{name: figure.median for name, figure in ratios.items()},
            "spread": {name: figure.record() for name, figure in ratios.items()},
            "totals": totals,
            "rounds": rounds,
            "prepared_seconds": prepared,
            "race": {"epochs": epochs, "trials": starts, "best": best},
            "how": f"epochs of {SAMPLE} images, scaled to {TRAIN} + {VAL}, 6 trials a depth and 5 epochs a trial",
        },
    )


if __name__ == "__main__":
    main()
