"""Rows 39 and 40 of the fault table: W&B in trouble is no trouble of the training's."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finetune.records.layout import LOG, RECORD
from finetune.records.result import Result, outcome
from finetune.sweep.launch import LocalLauncher, Slot
from tests.faults.invariants import living, wait_for
from tests.test_wandb import made, one_after_the_other, start
from tests.wandb_server import KEY, wandb_server


@contextlib.contextmanager
def troubled(status: int, answers: bool = True) -> Iterator[str]:
    """The address of a server that answers everything with `status`; or never, while this is open."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not answers:
                over.wait()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def environment(url: str) -> dict[str, str]:
    return {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": KEY,
        "WANDB_MODE": "online",
        "WANDB_ERROR_REPORTING": "false",
    }


@pytest.mark.slow
def test_fault_39_a_server_that_is_away_broken_busy_or_slow_leaves_training_as_it_was(
    tmp_path: Path, fast: list[str]
) -> None:
    words = [*fast, "model.freeze_depth=17"]
    with troubled(500) as broken, troubled(429) as busy, troubled(200, answers=False) as slow:
        addresses = {"away": "http://127.0.0.1:9", "broken": broken, "busy": busy, "slow": slow}
        launchers = {name: LocalLauncher([Slot(None, 1)], environment(url)) for name, url in addresses.items()}
        plain = LocalLauncher([Slot(None, 1)])
        jobs = plain.start([(words, tmp_path / "plain")])
        for name, launcher in launchers.items():
            jobs += launcher.start([([*words, "logger=wandb"], tmp_path / name)])
        while any(job.exitcode is None for job in jobs):
            plain.wait(jobs)
    assert [job.exitcode for job in jobs] == [0] * 5
    undisturbed = Result.load(tmp_path / "plain")
    for name in addresses:
        record, log = Result.load(tmp_path / name), (tmp_path / name / LOG).read_text()
        assert record.status == "complete", name
        assert outcome(record)["history"] == outcome(undisturbed)["history"], name
        (run,) = (tmp_path / name / "wandb").glob("offline-run-*")
        (told,) = record.warnings
        assert told.startswith("W&B did not begin the run ("), name
        assert told.endswith(f"its metrics are in {run}: `wandb sync {run}` uploads them"), name
        assert f"warning: {told}" in log, name
        assert list(run.glob("*.wandb")), name
        assert KEY not in log + (tmp_path / name / RECORD).read_text()
        assert not living(str(tmp_path / name)), name


@pytest.mark.slow
def test_fault_39_a_server_that_goes_away_while_training_is_waited_for_only_a_while(
    tmp_path: Path, fast: list[str]
) -> None:
    with wandb_server() as server:
        launcher = LocalLauncher([Slot(None, 1)], server.environment())
        words = [*fast[:4], "trainer.epochs=300", fast[-1], "model.freeze_depth=17", "logger=wandb"]
        (job,) = launcher.start([(words, tmp_path / "r")])
        wait_for(lambda: any(run.history for run in server.runs.values()))
    wait_for((tmp_path / "r" / RECORD).exists)
    while job.exitcode is None:
        launcher.wait([job])
    assert job.exitcode == 0
    assert Result.load(tmp_path / "r").status == "complete"
    (run,) = (tmp_path / "r" / "wandb").glob("run-*")
    assert f"`wandb sync {run}` uploads them" in (tmp_path / "r" / LOG).read_text()
    assert not living(str(tmp_path / "r"))


@pytest.mark.slow
def test_fault_40_a_trial_under_way_is_recorded_when_the_controller_is_lost(tmp_path: Path, fast: list[str]) -> None:
    trials = [{"optim.lr": 0.01, "trainer.epochs": 60}, {"optim.lr": 0.01, "trainer.epochs": 1}]
    with wandb_server(one_after_the_other(trials)) as server:
        sweep = made(server, tmp_path, fast[:-2] + fast[-1:], epochs=1)
        agent = start(server, tmp_path, "finetune.cli", "agent", sweep, "--workers", "1")
        wait_for(lambda: "run0" in server.runs and server.runs["run0"].history)
    folder = tmp_path / "runs" / "real-sweep1" / "trials"
    wait_for(lambda: list(folder.glob(f"*/{RECORD}")))
    (trial,) = folder.iterdir()
    record = (trial / RECORD).read_bytes()
    assert Result.load(trial).status == "complete"
    assert len(Result.load(trial).history) == 60
    wait_for(lambda: "at freeze_depth" in (trial / LOG).read_text())  # the last it says, once W&B had its time
    time.sleep(1)
    agent.send_signal(signal.SIGINT)  # until then it asks the controller for more
    said, _ = agent.communicate(timeout=60)
    assert "errored" not in said, said
    assert (trial / RECORD).read_bytes() == record
    assert list(folder.iterdir()) == [trial]
    assert not living(str(trial))
