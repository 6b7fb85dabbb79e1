"""What it costs to build, trace and cut each network of `tests/network/test_networks.py`, on one core.

`python benchmarks/building.py [NAME …]` prints processor seconds: *found* is the first time in a process, tracing
included, and is paid once a sweep; *again* is what each trial pays, with its units known. Importing torch and timm is
in neither.
"""

import sys
import time

import torch
from common import HERE, print_rows

from finetune.network.backbone import build_backbone
from finetune.network.freeze import find_cut
from finetune.network.parts import split_at

sys.path.insert(0, str(HERE.parent))  # for the list of networks, which the tests have


def main(names: list[str]) -> None:
    """Measure each network, after two others, with which what is imported on the way is there."""
    torch.set_num_threads(1)
    _cut("timm/test_vit3")
    _cut("resnet18")
    rows = []
    for name in names:
        (units, found), (_, again) = _cut(name), _cut(name)
        rows.append([name, units, f"{found:.2f}", f"{again:.2f}"])
        print(*rows[-1], flush=True)
    print_rows("processor seconds", ["network", "units", "found", "again"], rows)


def _cut(name: str) -> tuple[int, float]:
    """How many units a network has, and the processor seconds that it takes to build it and cut it in half."""
    start = time.process_time()
    backbone = build_backbone(name, empty=True)
    split_at(backbone, find_cut(backbone, len(backbone.units) // 2, "block"))
    return len(backbone.units), time.process_time() - start


if __name__ == "__main__":
    from tests.network.test_networks import UNITS

    main(sys.argv[1:] or list(UNITS))
