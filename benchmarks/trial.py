"""One trial per freeze depth against the naive one and the floor: `python benchmarks/trial.py [--weights FILE]`.

Images a second while ResNet50 trains at 128 px: naive in 32-bit, naive by an expert (`careful`, in the format of ours),
ours from stores, and the bare loop. Then the head alone, whole trials: from stored features, with the start of its
process, and with a fresh view of each image in each epoch, whose stores six trials share. In turn, `--repeats` rounds;
about 20 minutes a format on 2 cores.
"""

import argparse
import time
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

from finetune.sweep.prepare import check_and_prepare

TRAIN, VAL, SIZE, EPOCHS, SHARERS = 160, 64, 128, 5, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="ResNet50's, as .pth; random ones cost the same")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", type=Path, help="keep images and stores here")
    add_precisions(parser)
    given = parser.parse_args()
    figures = {}
    with workplace(given.scratch) as kept:
        weights = weights_file(given.weights, "resnet50", kept)
        small, images = make_images(kept / "small", TRAIN, VAL), make_images(kept / "images")
        for precision in given.precision:
            scratch = kept / precision
            scratch.mkdir()
            depths = by_depth(small, weights, scratch, given.repeats, precision)
            heads = head_alone(images, weights, scratch, given.repeats, precision)
            print(f"\n# {precision}")
            tell(depths, heads)
            figures[precision] = {"depths": as_records(depths), "heads": as_records(heads), "images": [TRAIN, VAL]}
    write_json(given.json, figures)


Measured = dict[str, dict[str, Figure]]


def by_depth(data: Path, weights: Path, scratch: Path, repeats: int, precision: str) -> Measured:
    """Seconds of an epoch, and their ratios round by round."""
    fixed = base(data, weights, scratch / "cache", SIZE, EPOCHS, precision)
    configs = [([*fixed, f"model.freeze_depth={depth}"], SHARERS) for depth in DEPTHS.values()]
    shared = check_and_prepare(configs).shared
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in DEPTHS}
    for i in range(repeats):
        for name, depth in DEPTHS.items():
            sides = {}
            for side, careful in (("naive", 0), ("careful", 1)):
                out = scratch / f"{side}.json"
                settings = {"depth": depth, "stop_after": 1, "epochs": EPOCHS, "size": SIZE, "careful": careful}
                settings["precision"] = precision if careful else "32"
                _, told = run_naive(data, weights, out, **settings)
                sides[side] = told["epochs"][0]["seconds"] * CORES  # it has all cores, ours one each
            trial = run_trial(fixed, depth, shared, scratch / f"depth-{i}", whole=name == "all")
            fresh = run_trial([*fixed, "augment=standard"], depth, shared, scratch / f"fresh-{i}", whole=False)
            sides |= {"ours": trial.epoch, "fresh": fresh.epoch, "augment": fresh.augment}
            sides["floor"] = suffix_seconds("resnet50", precision, depth, SIZE, TRAIN, VAL, CORES)
            rows[name].append(sides)
            print(name, {key: round(value, 2) for key, value in sides.items()}, flush=True)
    return {
        name: {
            **{side: Figure(tuple(row[side] for row in of_depth)) for side in of_depth[0]},
            "naive / ours": Figure(tuple(row["naive"] / row["ours"] for row in of_depth)),
            "careful / ours": Figure(tuple(row["careful"] / row["ours"] for row in of_depth)),
            "ours / floor": Figure(tuple(row["ours"] / row["floor"] for row in of_depth)),
        }
        for name, of_depth in rows.items()
    }


def head_alone(data: Path, weights: Path, scratch: Path, repeats: int, precision: str) -> Measured:
    """Core seconds of a whole trial of the head: from stored features, and with a fresh view of each image an epoch."""
    fixed = base(data, weights, scratch / "cache", SIZE, EPOCHS, precision)
    depth = DEPTHS["all"]
    rounds = []
    for i in range(repeats):
        spent, told = run_naive(data, weights, scratch / "naive.json", depth=depth, stop_after=1, size=SIZE, flip=1)
        epoch = told["epochs"][0]["seconds"]
        naive = (spent.wall + (EPOCHS - 1) * epoch) * CORES
        made = {}
        for kind, words in (("stored", []), ("fresh", ["augment=standard", f"cache.views={EPOCHS}"])):
            start = time.perf_counter()
            cache = scratch / f"cache-{kind}-{i}"
            every = [*fixed, *words, f"cache.dir={cache}"]
            shared = check_and_prepare([([*every, f"model.freeze_depth={depth}"], SHARERS)]).shared
            made[f"{kind} build"] = (time.perf_counter() - start) * CORES / SHARERS
            trial = run_trial(every, depth, shared, scratch / f"head-{kind}-{i}", whole=True)
            made[kind] = trial.other + EPOCHS * trial.epoch
        rounds.append({"naive": naive, **made})
        print("head alone", {key: round(value, 2) for key, value in rounds[-1].items()}, flush=True)

    def ratio(*names: str) -> Figure:
        return Figure(tuple(row["naive"] / sum(row[name] for name in names) for row in rounds))

    return {
        "stored features": {
            "naive / ours": ratio("stored"),
            "with its share of the build": ratio("stored", "stored build"),
        },
        "a fresh view each epoch": {
            "naive / ours": ratio("fresh"),
            "with its share of the build": ratio("fresh", "fresh build"),
        },
    }


def as_records(measured: Measured) -> dict[str, Any]:
    return {name: {key: figure.record() for key, figure in row.items()} for name, row in measured.items()}


def tell(depths: Measured, heads: Measured) -> None:
    count = TRAIN + VAL
    sides = ("naive", "careful", "ours", "fresh", "floor")
    print_rows(
        f"images a second and core, {TRAIN} and {VAL} images; `fresh`: augmented anew, so that the prefix is computed",
        ["frozen", *sides],
        [[name, *(f"{count / row[side].median:.1f}" for side in sides)] for name, row in depths.items()],
    )
    names = ("naive / ours", "careful / ours", "ours / floor")
    print_rows("ratios, median (spread)", ["frozen", *names], [[n, *(r[x] for x in names)] for n, r in depths.items()])
    print_rows(
        "augmentation, seconds of an epoch against all of it",
        ["frozen", "augment", "epoch"],
        [[name, f"{row['augment'].median:.2f}", f"{row['fresh'].median:.2f}"] for name, row in depths.items()],
    )
    columns = ("naive / ours", "with its share of the build")
    print_rows(
        "the head alone, whole trials", ["", *columns], [[n, *(r[x] for x in columns)] for n, r in heads.items()]
    )


if __name__ == "__main__":
    main()
