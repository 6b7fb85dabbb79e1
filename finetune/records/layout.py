"""Every name under `runs/`: what lies in the folder of a sweep, and of a trial. Imports nothing of ours."""

import re

# In a sweep's folder
SWEEP = "sweep.json"
"""Which sweep a folder holds."""
LOCK = ".lock"
"""Locked by the one process that runs the sweep."""
TRIALS = "trials"
"""The folder that has a folder for each trial, named by its key."""
NUMBER_FORMAT = "precision.json"
"""The number format of a sweep whose trials are jobs of a cluster, where the first of them measured it."""
JOBS = "jobs"
"""The folder of submitit's files, where the trials are jobs of a cluster."""
REFIT = "refit"
"""The folder of the winner's last training, on all images."""
REPORT = "report.html"

# In a trial's folder
RECORD = "result.json"
"""The record of a trial."""
CORRECT = "correct.json"
"""Beside a record: which validation images each epoch got right, where that is too long for the record."""
RECORD_FILES = (RECORD, CORRECT)
"""What a W&B run keeps of its trial's folder."""
CHECKPOINT = "best.safetensors"
PREDICTIONS = "predictions.npz"
"""Beside the checkpoint, and like it kept of the sweep's best trial only."""
HYDRA = ".hydra"
"""The folder of what the trial was composed from, under the names that Hydra gives these files."""
OVERRIDES = "overrides.yaml"
"""In `.hydra`: what the trial was given, a list of `KEY=VALUE`."""
CONFIG = "config.yaml"
"""In `.hydra`: all its settings."""
LOG = "log.txt"
PROGRESS = "progress.json"
"""The epochs of a running trial."""
LAST = "last.ckpt"
"""Where an unfinished trial goes on from; gone once it has its record."""
HEARTBEAT = "heartbeat"
"""A file that changes while the trial makes progress."""
STOP = "stop"
"""A file that asks the trial in its folder to end; it holds the reason."""
UNSETTLED = "unsettled"
"""A file beside the record of a trial that ran to its end, or that W&B stopped, while trials before it, which may show
that it fell behind long ago, are under way."""
WANDB = "wandb"
"""The folder of a W&B run's files."""
SYNCED = "synced.txt"
"""Where the trial is in W&B: `finetune sync` has put it there, or its record was fetched."""

# In an exported folder, which may lie anywhere
EXPORTED = "model.safetensors"
"""The weights."""


def folder_name(name: str) -> str:
    """The folder for what is called `name`, on any system: Windows has names of its own, and drops dots at the end.

    >>> folder_name("explore"), folder_name("aux"), folder_name("con.v2"), folder_name("at last.")
    ('explore', '_aux', '_con.v2', 'at last._')
    """
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE):
        name = f"_{name}"
    return f"{name}_" if name.endswith((".", " ")) else name
