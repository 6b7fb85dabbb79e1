"""A sweep of W&B's whose trials we decide about, as `finetune sweep` does, and agents on any machine train."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune.errors import Refused, message_of
from finetune.records.result import Result
from finetune.report.wandb_runs import client_errors
from finetune.report.wandb_summary import write_summary
from finetune.storage.durable import remove_leftovers
from finetune.sweep.coordinator import Coordinator
from finetune.sweep.folder import alone, as_begun, claim, refuse_another, refuse_unusable
from finetune.sweep.records import trial_settings
from finetune.sweep.run import in_order, objective_of
from finetune.sweep.search import Search, size
from finetune.sweep.state import Options, Sweep
from finetune.sweep.wandb_launcher import WandbLauncher
from finetune.sweep.wandb_sweep import local_name, open_sweep, spec_of

TESTED_WITH = "0.31"
"""The release of W&B's client that this was tried with, against the server of our tests alone."""


def run_scheduler(
    name: str,
    options: Options,
    agents: int,
    seed: int = 0,
    poll: float = 10.0,
    watch: Callable[[Sweep, Result | None], None] = lambda sweep, ended: None,
) -> Sweep:
    """Decide about the trials of a W&B sweep until none is left; or go on where an earlier call ended.

    Its records are kept in `runs/NAME-ID-all`. Without that folder they are fetched from W&B again.

    Args:
        name: `ENTITY/PROJECT/ID`.
        options: How trials are judged; where they run is the agents' business.
        agents: Trials at a time.
        seed: The seed of the search, not of the trials.
        poll: Seconds from one look at the runs to the next.
        watch: Called after each look, and with each trial's record as it ends.

    Raises:
        Refused: no such sweep, W&B itself hands out its trials, or it cannot be honoured here.
        KeyboardInterrupt: passed on; the agents finish what they have, and a later call goes on.
    """
    # 1. Which sweep
    remote = open_sweep(name)
    refuse_unscheduled(name, remote)
    folder = Path("runs") / f"{local_name(remote.config, name)}-all"
    spec = as_begun(spec_of(remote.config, name), folder)
    settings_of = trial_settings(spec)
    refuse_another(spec, folder, seed)
    refuse_unusable(folder)

    # 2. Its trials, decided about as if they ran here
    objective = objective_of(spec, settings_of, options.margin)
    sweep = Sweep(spec, folder, size(spec), objective)
    with alone(folder):
        remove_leftovers(folder)
        claim(spec, folder, seed, (), sweep.total, objective)
        _sum_up(folder, name)  # from then on W&B knows how the trials are judged
        launcher = WandbLauncher(remote, spec, settings_of, folder, agents, poll)
        launcher.look_back()
        search = Search(spec, seed, in_order(sweep, seed, None))
        Coordinator(sweep, settings_of, search, launcher, options, watch).run()

        # 3. What it came to
        _sum_up(folder, name)
        if sweep.best is not None:
            end_agents(name)
    return sweep


def refuse_unscheduled(name: str, sweep: Any) -> None:
    """Make sure that W&B's server leaves the trials of a sweep to a scheduler.

    Raises:
        Refused: it does not, or this client cannot tell it which trials to run.
    """
    import wandb

    if not hasattr(sweep, "enqueue_run"):
        raise Refused(
            f"wandb {wandb.__version__} cannot put runs into a sweep's queue; pip install 'wandb>={TESTED_WITH}'"
        )
    if not sweep.config.get("scheduler"):
        raise Refused(
            f"{name}: W&B itself decides about its trials; add `scheduler: {{engine: wandb}}` to the sweep file and "
            "make another with `wandb sweep`"
        )
    if not wandb.__version__.startswith(f"{TESTED_WITH}."):
        print(f"warning: this is wandb {wandb.__version__}, and {TESTED_WITH} is what was tried", file=sys.stderr)


def end_agents(name: str) -> None:
    """Tell W&B that a sweep has no trial left, upon which its agents end."""
    command = [sys.executable, "-P", "-m", "wandb", "sweep", "--stop", name]
    told = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if told.returncode and "already" not in told.stdout + told.stderr:
        print(f"warning: the agents wait for more: `wandb sweep --stop {name}` ends them", file=sys.stderr)


def _sum_up(folder: Path, name: str) -> None:
    """Write the summary run; the sweep needs none."""
    try:
        write_summary(folder, *name.split("/"))
    except client_errors() as error:
        print(f"warning: no summary in W&B ({message_of(error)})", file=sys.stderr)
