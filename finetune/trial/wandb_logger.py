"""A W&B run that training never waits for: where the server does not answer, its metrics stay on this machine."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from finetune.errors import message_of
from finetune.records.layout import STOP, WANDB
from finetune.records.result import REFUSED, STOPPED_BY_WANDB
from finetune.storage.durable import write_durably

PATIENCE = 10.0
"""Seconds that the server may take to answer at the start of a run."""
PATIENCE_AT_END = 20.0
"""Seconds that it may take for the rest of a run at its end."""


def tell_refusal(reason: str) -> None:
    """End the run of an agent's trial that does not begin, with the reason: the run would wait for it for ever."""
    if "WANDB_SWEEP_ID" not in os.environ:
        return

    import wandb

    with contextlib.suppress(wandb.Error, TimeoutError), tempfile.TemporaryDirectory() as scratch:
        settings = wandb.Settings(init_timeout=PATIENCE, login_timeout=PATIENCE, finish_timeout=PATIENCE)
        run = wandb.init(dir=scratch, resume="allow", settings=settings)
        run.summary[REFUSED] = reason
        run.finish(exit_code=2)


class PatientLogger(WandbLogger):
    """Lightning's logger, whose run is begun at its first use and goes on offline where the server does not answer."""

    def __init__(self, project: str, offline: bool, out: Path):
        """`out` is the trial's folder; the run's files are kept in `out/wandb`."""
        super().__init__(project=project, offline=offline, save_dir=out)
        self.out = out
        self.warning = ""
        """Why the run is offline though it should not be, and how it is uploaded; empty while all is well."""

    @property
    def experiment(self) -> Any:
        """The run."""
        if self._experiment is None:
            self._experiment = self._begin()
        return self._experiment

    def finish(self, code: int) -> None:
        """End the run with the trial's exit code; what the server does not take in time stays here, and is said."""
        try:
            self.experiment.finish(exit_code=code)
        except TimeoutError:
            self._warn(f"did not take all of the run within {PATIENCE_AT_END:g} s")

    def _begin(self) -> Any:
        import wandb

        def stop() -> None:
            write_durably(self.out / STOP, STOPPED_BY_WANDB.encode())

        settings = wandb.Settings(
            stop_fn=stop,
            init_timeout=PATIENCE,
            login_timeout=PATIENCE,
            finish_timeout=PATIENCE_AT_END,
            finish_timeout_raises=True,
        )
        arguments: dict[str, Any] = {"project": self._project, "dir": self.out, "resume": "allow", "settings": settings}
        try:
            run = wandb.init(**arguments, mode="offline" if self._offline else None)
        except wandb.Error as error:
            run = wandb.init(**arguments, mode="offline")
            self._warn(f"did not begin the run ({message_of(error)})")
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    def _warn(self, what: str) -> None:
        kept = max((self.out / WANDB).glob("*run-*"), key=lambda folder: folder.stat().st_mtime)
        self.warning = f"W&B {what}; its metrics are in {kept}: `wandb sync {kept}` uploads them"
        print(f"warning: {self.warning}", file=sys.stderr, flush=True)
