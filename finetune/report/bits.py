"""Which images the best configuration of each depth got right, where all records tell of the same ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.records.correct import unpack
from finetune.records.result import Result
from finetune.report.table import Table

Epochs = list[NDArray[np.bool_]]
"""Of each seed, epochs x images: whether each was right."""


def best_bits(records: Sequence[Result], table: Table) -> dict[int, Epochs]:
    """By freeze depth, the bits of its best configuration's trials; empty where they cannot be compared.

    That is where a record of them has none, as those of older versions, or where their images differ.
    """
    trials = {record.key: record for record in records}
    groups = {group.freeze_depth: [trials[key] for key in group.keys] for group in table.best_per_depth}
    chosen = [trial for group in groups.values() for trial in group]
    images = {(trial.digests.get("dataset"), trial.digests.get("split"), trial.val_images) for trial in chosen}
    if len(images) != 1 or not all(trial.correct for trial in chosen):
        return {}
    try:
        return {depth: [unpack(trial.correct, trial.val_images) for trial in group] for depth, group in groups.items()}
    except ValueError:
        return {}
