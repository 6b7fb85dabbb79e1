"""What stores take and give at 224 px: `python benchmarks/stores.py [--weights FILE] [--images 96] [--json FILE]`.

For ResNet50's cuts: bytes an image, planned and on the disk; images a second built, read from memory, and computed; and
from how many passes on the cost model stores. For pixels: decoding. For both: the share of checksums in building.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import DEPTHS, Figure, add_precision, base, make_images, print_rows, weights_file, write_json

from finetune.compose import compose_config
from finetune.network.device import FORMATS, Precision
from finetune.network.network import build_network
from finetune.network.parts import FrozenPrefix, SharedPrefix
from finetune.sharing.activations import Source, build, measure_costs, row_shapes
from finetune.sharing.cost import Costs, decide
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from finetune.sharing.requests import preprocess_of
from finetune.storage.store import open_store, store_bytes

SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    add_precision(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        weights = weights_file(given.weights, "resnet50", scratch)
        data = make_images(scratch / "images", given.images, 10)
        pixels = pixel_rates(data, weights, scratch, given.repeats)
        cuts = cut_rates(data, weights, scratch, given.repeats, FORMATS[given.precision])
    rows = [
        [
            name,
            f"{row['bytes'] / 1024:,.0f}",
            f"{row['on_disk'] / row['planned']:.3f}",
            *(row[key] for key in ("built", "read", "computed")),
            row["pays_from"],
            row["checksum"],
        ]
        for name, row in cuts.items()
    ]
    columns = ["cut after", "KiB an image", "disk / plan", "built, images/s", "read, images/s", "computed, images/s"]
    print_rows(f"activations, {given.precision}, {SIZE} px", [*columns, "stored from passes", "checksum / build"], rows)
    print_rows("pixels", list(pixels), [list(pixels.values())])
    record = lambda row: {k: v.record() if isinstance(v, Figure) else v for k, v in row.items()}  # noqa: E731
    write_json(given.json, {"cuts": {n: record(r) for n, r in cuts.items()}, "pixels": record(pixels)})


def pixel_rates(data: Path, weights: Path, scratch: Path, repeats: int) -> dict[str, Any]:
    """Building a pixel store, reading it again, and what its checksums cost."""
    built, read, share = [], [], []
    for i in range(repeats):
        config = compose_config(base(data, weights, scratch / f"pixels{i}", SIZE, 5))
        spent, images = timed(lambda config=config: open_images(config, Facts())[0])
        rows = images.splits["train"].images
        built.append(len(rows) / spent * len(rows) / (len(rows) + 10))
        read.append(len(rows) / timed(lambda rows=rows: rows[np.random.default_rng(0).permutation(len(rows))])[0])
        with without_checksums():
            bare = compose_config(base(data, weights, scratch / f"bare{i}", SIZE, 5))
            share.append(1 - timed(lambda bare=bare: open_images(bare, Facts()))[0] / spent)
    return {
        "KiB an image": f"{rows.row_bytes / 1024:.0f}",
        "built, images/s": Figure(tuple(built)),
        "read at random, images/s": Figure(tuple(read)),
        "checksum / build": Figure(tuple(share)),
    }


def cut_rates(data: Path, weights: Path, scratch: Path, repeats: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Every cut of ResNet50's stages, alone."""
    config = compose_config([*base(data, weights, scratch / "cache", SIZE, 5), "model.freeze_depth=all"])
    images, weights, cut = open_images(config, Facts())
    frozen = build_network(config.model, weights, cut, classes=10).prefix
    assert isinstance(frozen, FrozenPrefix)
    prefix = SharedPrefix.of(frozen, dtype=dtype)
    preprocess = preprocess_of(config, weights)
    source = Source("train", images.splits["train"], preprocess, 0, None)
    cpu = Precision(torch.device("cpu"), dtype)
    costs = measure_costs(prefix, source, cpu, scratch)
    found = {}
    for name, depth in {"stem": 1, **DEPTHS}.items():
        if depth == 0:
            continue
        at, count = depth + (depth == DEPTHS["all"]), len(source.pixels.labels)
        shape, dtype = row_shapes(prefix, source, [at], cpu)[at]
        row_bytes = store_bytes(1, shape, 2 if dtype == "bfloat16" else 4)
        built, read, computed, share = [], [], [], []
        for i in range(repeats):
            folder = scratch / f"{name}{i}"
            spent = timed(lambda: build(prefix, source, {at: folder}, cpu, costs))[0]  # noqa: B023
            bare = scratch / f"{name}{i}-bare"
            with without_checksums():
                share.append(1 - timed(lambda: build(prefix, source, {at: bare}, cpu, costs))[0] / spent)  # noqa: B023
            built.append(count / spent)
            store = open_store(folder)
            assert store is not None
            order = np.random.default_rng(i).permutation(count)
            read.append(count / timed(lambda: [store.rows[order[j : j + 32]] for j in range(0, count, 32)])[0])  # noqa: B023
            x = source.images(slice(0, 32), None, cpu.device)
            with cpu.autocast():
                computed.append(32 / timed(lambda: prefix.activations(x, [at]))[0])  # noqa: B023
        size = sum(file.stat().st_size for file in folder.iterdir())
        found[name] = {
            "bytes": row_bytes,
            "planned": count * row_bytes,
            "on_disk": size,
            "built": Figure(tuple(built)),
            "read": Figure(tuple(read)),
            "computed": Figure(tuple(computed)),
            "checksum": Figure(tuple(share)),
            "pays_from": pays_from(costs, at, row_bytes, count),
        }
    return found


def pays_from(costs: Costs, at: int, row_bytes: int, count: int) -> int:
    return next(n for n in range(1, 10_000) if decide(costs, at, row_bytes, count, n).pays)


def without_checksums() -> Any:
    return mock.patch("finetune.storage.store.zlib.crc32", return_value=0)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = run()
    return time.perf_counter() - start, made


if __name__ == "__main__":
    with contextlib.suppress(AttributeError):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    main()
