"""A scheduler decides about trials that agents run elsewhere as the coordinator does of those that run here."""

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from finetune.compose import override
from finetune.errors import Refused
from finetune.records.layout import STOP
from finetune.records.read import read_records
from finetune.records.result import STOPPED_BY_WANDB, Result
from finetune.report.table import tabulate
from finetune.sweep.scheduler import refuse_unscheduled, run_scheduler
from finetune.sweep.state import Options, Sweep
from tests.faults.invariants import PATIENCE, wait_for
from tests.sweep.test_standings import SPACE, Drawer, Drawn, Runner, drawn, state_of
from tests.test_wandb import made, start
from tests.wandb_server import wandb_server

__all__ = ["drawn"]


@dataclass
class Remote:
    """A run of a pretended W&B, whose trial is drawn in a folder of the machine that has it."""

    id: str
    config: dict[str, Any]
    drawn: Drawn
    params: dict[str, Any]
    """What it was enqueued with."""
    state: str = "pending"
    taken_away: bool = False
    """Whether its machine is, at the moment at which it is told to stop."""

    @property
    def path(self) -> list[str]:
        return ["us", "p", self.id]

    @property
    def summary(self) -> dict[str, Any]:
        return {"epoch": self.drawn.done - 1, "val/images": 300} if self.drawn.done else {}

    @property
    def heartbeatAt(self) -> str:
        return str(self.drawn.done)

    def history(self, keys: list[str], samples: int, pandas: bool) -> list[dict[str, float]]:
        return [{key: epoch[key] for key in keys} for epoch in self.drawn.history[: self.drawn.done]]

    def stop(self) -> None:
        """As W&B does: one that waits, for its machine was taken away, is over."""
        if self.taken_away:
            self.state = "killed"
            return
        self.drawn.folder.mkdir(parents=True, exist_ok=True)
        (self.drawn.folder / STOP).write_text(STOPPED_BY_WANDB)

    def step(self) -> None:
        """Begin, or end an epoch."""
        if self.state == "pending":
            self.state = "running"
            self.config = {**self.drawn.settings}
        else:
            self.drawn.step()
            self.state = "running" if self.drawn.exitcode is None else "finished"


@dataclass
class Cloud:
    """A pretended W&B with the agents of two machines, each as fast as chance has it."""

    config: dict[str, Any]
    machines: Path
    fixed: list[str]
    agents: int = 3
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    looks: int | None = None
    """After so many looks the scheduler is killed."""
    runs: list[Remote] = field(default_factory=list)
    ended: bool = False
    takes_away: bool = False
    """Whether the machine of each trial's first run is taken away when that is told to stop."""
    entity, project, id = "us", "p", "ID"
    path = ("us", "p", "ID")

    def enqueue_run(self, params: dict[str, Any]) -> str:
        name = f"run{len(self.runs)}"
        words = [*self.fixed, *(override(key, value) for key, value in params.items())]
        first = params not in [run.params for run in self.runs]
        drawn = Drawn(words, self.machines / name)
        self.runs.append(Remote(name, params, drawn, params, taken_away=self.takes_away and first))
        return name

    def look(self, entity: str, project: str, sweep: str, names: Sequence[str] = ()) -> list[Remote]:
        if self.looks is not None:
            self.looks -= 1
            if self.looks < 0:
                raise KeyboardInterrupt
        alive = [run for run in self.runs if run.state in ("pending", "running")]
        for run in alive[: self.agents]:
            if self.chance.random() < 0.5:
                run.step()
        return [run for run in self.runs if not names or run.id in names]

    def lose_one(self) -> None:
        """Have the machine of a run go away."""
        next(run for run in self.runs if run.state == "running").state = "crashed"


def record_of(run: Remote) -> Result | None:
    return Result.load(run.drawn.folder) if run.state == "finished" else None


Scheduling = Callable[..., Sweep]


@pytest.fixture
def cloud(tmp_path: Path, fast: list[str], monkeypatch: pytest.MonkeyPatch) -> Cloud:
    fixed = [*fast, "trainer.epochs=1"]
    config = {
        "name": "s",
        "method": "grid",
        "metric": {"name": "val/acc_best", "goal": "maximize"},
        "scheduler": {"engine": "wandb"},
        "command": ["${env}", "${interpreter}", "-m", "finetune.train", *fixed, "${args_no_hyphens}"],
        "parameters": SPACE,
    }
    cloud = Cloud(config, tmp_path / "machines", fixed)
    monkeypatch.chdir(tmp_path)
    for place in ("scheduler", "wandb_sweep"):
        monkeypatch.setattr(f"finetune.sweep.{place}.open_sweep", lambda name: cloud)
    monkeypatch.setattr("finetune.sweep.wandb_launcher.runs_of", cloud.look)
    monkeypatch.setattr("finetune.sweep.wandb_launcher.record_of", record_of)
    monkeypatch.setattr("finetune.sweep.scheduler._sum_up", lambda folder, name: None)
    monkeypatch.setattr("finetune.sweep.scheduler.end_agents", lambda name: setattr(cloud, "ended", True))
    return cloud


def schedule(agents: int = 3, **more: Any) -> Sweep:
    return run_scheduler("us/p/ID", Options(margin=0.02, **more), agents, poll=0.0)


FOLDER = Path("runs/s-ID-all")


@pytest.mark.slow
def test_the_same_trials_end_with_the_same_verdict_as_here(tmp_path: Path, drawn: Runner, cloud: Cloud) -> None:
    drawn("here", Drawer(1))
    schedule()
    assert state_of(FOLDER) == state_of(tmp_path / "here")
    assert cloud.ended
    assert len({json.dumps(run.drawn.settings, default=str) for run in cloud.runs}) == len(cloud.runs), "none ran twice"


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_waits_ends_as_stopped(tmp_path: Path, drawn: Runner, cloud: Cloud) -> None:
    drawn("here", Drawer(1))
    cloud.takes_away = True
    sweep = schedule()
    assert "killed" in {run.state for run in cloud.runs}
    assert sweep.notes == [], "nothing failed"
    assert state_of(FOLDER) == state_of(tmp_path / "here")


def test_killed_at_ten_moments_it_goes_on_from_what_wandb_knows(tmp_path: Path, drawn: Runner, cloud: Cloud) -> None:
    drawn("here", Drawer(1))
    for moment in range(10):
        cloud.looks = 5
        with pytest.raises(KeyboardInterrupt):
            schedule(agents=2)
        if moment in (3, 6):  # on another machine
            shutil.rmtree(FOLDER)
    cloud.looks = None
    schedule(agents=2)
    assert state_of(FOLDER) == state_of(tmp_path / "here")
    assert len({run.drawn.settings["out"] for run in cloud.runs}) == len(cloud.runs)
    assert len({json.dumps({**run.drawn.settings, "out": ""}) for run in cloud.runs}) == len(cloud.runs), (
        "none ran twice"
    )


@pytest.mark.slow
def test_a_trial_whose_machine_is_lost_runs_again(tmp_path: Path, drawn: Runner, cloud: Cloud) -> None:
    drawn("here", Drawer(1))
    cloud.looks = 6
    with pytest.raises(KeyboardInterrupt):
        schedule()
    cloud.looks = None
    cloud.lose_one()
    schedule()
    assert state_of(FOLDER) == state_of(tmp_path / "here")
    assert [run.state for run in cloud.runs].count("crashed") == 1


def killed_twice_then_ended(cloud: Cloud) -> None:
    for looks in (12, 25):
        cloud.looks = looks
        with pytest.raises(KeyboardInterrupt):
            schedule(agents=1)
    cloud.looks = None
    schedule(agents=1)


@pytest.mark.slow
def test_a_random_search_is_scheduled_too(tmp_path: Path, drawn: Runner, cloud: Cloud) -> None:
    drawn("here", Drawer(1), method="random", run_cap=9)
    cloud.config |= {"method": "random", "run_cap": 9}
    killed_twice_then_ended(cloud)
    assert state_of(FOLDER) == state_of(tmp_path / "here")


@pytest.mark.slow
def test_a_bayes_search_is_scheduled_too(cloud: Cloud, drawn: Runner) -> None:
    """Its proposals depend on what was known when they were made, so they are others than here."""
    cloud.config |= {"method": "bayes", "run_cap": 9}
    killed_twice_then_ended(cloud)
    records = read_records(FOLDER)
    assert [record.seed for record in records].count(0) == 9
    assert len(records) == len(cloud.runs) > 9, "what is close was repeated, and none ran twice"


def test_a_sweep_that_wandb_decides_about_is_refused() -> None:
    sweep = SimpleNamespace(config={"method": "grid"}, enqueue_run=None)
    with pytest.raises(
        Refused, match=r"us/p/ID: W&B itself decides .* add `scheduler: \{engine: wandb\}` to the sweep"
    ):
        refuse_unscheduled("us/p/ID", sweep)


def test_a_client_without_the_queue_is_refused() -> None:
    sweep = SimpleNamespace(config={"scheduler": {"engine": "wandb"}})
    with pytest.raises(Refused, match="cannot put runs into a sweep's queue; pip install 'wandb>=0"):
        refuse_unscheduled("us/p/ID", sweep)


@pytest.mark.slow
@pytest.mark.long
def test_two_machines_a_lost_agent_and_a_scheduler_killed_twice_come_to_what_one_machine_does(
    tmp_path: Path, fast: list[str]
) -> None:
    places = {name: tmp_path / name for name in ("here", "scheduler", "one", "two")}
    for place in places.values():
        place.mkdir()
    space = {"model.freeze_depth": {"values": [14, 17]}, "optim.lr": {"values": [0.001, 0.01, 0.1]}}
    processes = []

    with wandb_server() as server:
        words = [*fast, "trainer.precision=32"]
        sweep = made(server, places["here"], words, epochs=2, parameters=space, scheduler={"engine": "wandb"})

        def begin(place: str, *command: str) -> "subprocess.Popen[str]":
            cache = str(places[place] / "cache")
            processes.append(start(server, places[place], *command, FINETUNE_CACHE=cache))
            return processes[-1]

        def scheduler() -> "subprocess.Popen[str]":
            words = ("--experimental", "--agents", "2", "--poll", "1s")
            return begin("scheduler", "finetune.cli", "scheduler", sweep, *words)

        def kill(process: "subprocess.Popen[str]") -> None:
            """It and all that it started: a trial of plain `wandb agent` outlives it."""
            for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.communicate()

        def ended() -> int:
            return sum(run.state == "finished" for run in server.sweep_runs())

        try:
            deciding = scheduler()
            wait_for(lambda: server.queue)
            kept = begin("one", "finetune.cli", "agent", sweep, "--workers", "1")
            wait_for(lambda: "agent0" in server.agents)
            lost = begin("two", "wandb", "agent", sweep)

            of_lost = lambda: [server.runs[name].state for name in server.agents.get("agent1", ())]  # noqa: E731
            wait_for(lambda: ended() > 1 and "running" in of_lost())
            kill(lost)
            with server.lock:
                server.lose("agent1")
            kill(deciding)  # while one trial runs and another is lost
            again = begin("two", "wandb", "agent", sweep)

            deciding = scheduler()
            wait_for(lambda: ended() > 5 or deciding.poll() is not None)
            assert deciding.poll() is None, deciding.communicate()[0]
            kill(deciding)
            shutil.rmtree(places["scheduler"] / "runs")  # as on another machine

            said, _ = scheduler().communicate(timeout=600)
            agents = [agent.communicate(timeout=PATIENCE)[0] for agent in (kept, again)]
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    kill(process)
        assert server.unknown == []
        runs = server.sweep_runs()
        summary = server.runs["sweep1-summary"]

    here = start(server, places["here"], "finetune.cli", "sweep", "sweep.yaml", FINETUNE_CACHE=str(tmp_path / "c"))
    expected, _ = here.communicate(timeout=PATIENCE)
    assert here.returncode == 0, expected
    of_one, of_many = places["here"] / "runs" / "real", places["scheduler"] / "runs" / "real-sweep1-all"
    assert without_time(state_of(of_many)) == without_time(state_of(of_one)), said
    assert epochs_of_whole_trials(of_many) == epochs_of_whole_trials(of_one)
    assert (kept.returncode, again.returncode) == (0, 0), agents
    assert sum(run.crashed and run.begun for run in runs) == 1
    caches = [run.settings().get("cache.dir", "") for run in runs]  # none yet of a run that was lost as it began
    assert {"one", "two"} <= {Path(cache).parent.name for cache in caches}
    assert summary.summary["trials"] == tabulate(read_records(of_one)).counts


def without_time(state: tuple[dict[str, tuple[str, str]], list[str]]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Trials and verdict, but for the sentence on who is quickest: these trials took real time."""
    trials, said = state
    return trials, [sentence for sentence in said if "cheapest" not in sentence]


def epochs_of_whole_trials(folder: Path) -> dict[str, int]:
    """Those of the trials that ran to their end; how far one came that was stopped depends on who is quick."""
    return {record.key: len(record.history) for record in read_records(folder) if record.status == "complete"}


@pytest.mark.slow
@pytest.mark.long
def test_what_a_trial_is_refused_for_reaches_the_scheduler(tmp_path: Path, fast: list[str]) -> None:
    space = {"model.freeze_depth": {"values": [14, 15, 16, 17]}}
    with wandb_server() as server:
        words = [*fast, f"data.root={tmp_path / 'nowhere'}"]
        sweep = made(server, tmp_path, words, epochs=1, parameters=space, scheduler={"engine": "wandb"})
        agent = start(server, tmp_path, "finetune.cli", "agent", sweep, "--workers", "1")
        command = ["scheduler", sweep, "--experimental", "--agents", "1", "--poll", "1s"]
        said, _ = start(server, tmp_path, "finetune.cli", *command).communicate(timeout=PATIENCE)
        agent.kill()
        agent.communicate()
        runs = server.sweep_runs()
    assert [run.state for run in runs] == ["failed"] * 3
    assert "ended early: the first 3 trials failed alike: refused: " in said, said
    assert "nowhere" in said
