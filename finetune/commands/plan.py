"""`finetune plan`: what a sweep file would run, and how long that would take here."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.console import console
from finetune.errors import Refused, counted

if TYPE_CHECKING:
    from finetune.config import Config
    from finetune.sweep.spec import SweepSpec
    from finetune.sweep.stopping import Hyperband


def plan(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A W&B sweep file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of every trial.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    gpus: Annotated[int | None, typer.Option(min=1, help="Reckon with so many GPUs like the first one here.")] = None,
) -> int:
    """Check a sweep file; nothing is run.

    Prints what it would run, here or under W&B's agents, how large its stores would be and how long it would take, and
    the first commands. The time is measured on this machine, in 20 seconds at the most.
    """
    from finetune.compose import compose_config
    from finetune.network.freeze import cut_of
    from finetune.sweep.search import Search, corners, size
    from finetune.sweep.spec import find_sweep, read_sweep
    from finetune.sweep.stopping import Hyperband

    spec = read_sweep(find_sweep(file), tuple(overrides or ()))
    configs = [compose_config(spec.overrides(params)) for params in corners(spec)]
    for config in configs:
        cut_of(config)  # refuses a depth that the network does not have, and batches of one image

    console.print(f"{spec.name}: {spec.method}, {counted(size(spec), 'trial')}, {spec.goal} {spec.metric}")
    for key, distribution in spec.parameters.items():
        console.print(f"  {key}: {distribution.text}")
    if isinstance(spec.stopping, Hyperband):
        console.print(f"  {_stopping_line(spec.stopping, configs)}")
    if all(config.data.root or config.data.csv for config in configs):
        spec = _print_size_and_time(spec, seed, gpus, configs)

    search = Search(spec, seed)
    for _ in range(1 if spec.method == "bayes" else 3):  # what bayes proposes next depends on the first's outcome
        trial = search.propose()
        if trial is not None:
            console.print("python -m finetune.train " + shlex.join(spec.overrides(trial)))
    for sentence in spec.read_otherwise:
        console.print(f"other than under W&B: {sentence}")
    for problem in spec.not_for_agents:
        console.print(f"W&B's own agents cannot run this file: {problem}")
    return 0


def _print_size_and_time(spec: "SweepSpec", seed: int, gpus: int | None, configs: "Sequence[Config]") -> "SweepSpec":
    """Measure, and say, how large its stores are and how long it takes on this machine.

    Returns:
        The sweep as it would run here, with the faster number format where it leaves that open.

    Raises:
        Refused: GPUs are to be reckoned with, and there is none to measure.
    """
    from finetune.compose import compose_config
    from finetune.sharing.requests import planned_stores
    from finetune.sweep.estimate import estimate_sweep
    from finetune.sweep.launch import local_slots
    from finetune.sweep.precision import with_measured_precision
    from finetune.sweep.prepare import usable_gpus
    from finetune.sweep.run import races_by_default
    from finetune.sweep.search import corners

    here = [] if all(config.trainer.accelerator == "cpu" for config in configs) else list(usable_gpus())
    if gpus is not None and not here:
        raise Refused(f"--gpus {gpus}: there is no GPU here to measure; leave it out, or plan where one is")

    slots = local_slots(here[:1] * gpus if gpus else here)
    if not here:
        spec = with_measured_precision(spec, seed, slots[0].threads)
        configs = [compose_config(spec.overrides(params)) for params in corners(spec)]
    for what, count in planned_stores(configs).items():
        console.print(f"  store: {what}: {count / 1e6:,.1f} MB")

    estimate = estimate_sweep(spec, slots, seed)
    for line in ["time: could not be measured here"] if estimate is None else estimate.lines(races_by_default(spec)):
        console.print(line)
    return spec


def _stopping_line(hyperband: "Hyperband", configs: "Sequence[Config]") -> str:
    longest = max(config.trainer.epochs for config in configs)
    bands = [str(band) for band in hyperband.bands if band < longest]
    when = f"after {', '.join(bands)} of {longest} epochs" if bands else f"never, in {longest} epochs"
    return f"stops trials behind the best 1/{hyperband.eta:g} {when}"
