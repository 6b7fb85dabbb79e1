"""What an agent refuses before it asks for a trial; the trials are tests/test_wandb.py's."""

from types import SimpleNamespace
from typing import Any

import pytest

from finetune.errors import Refused
from finetune.sweep import agent
from finetune.sweep.agent import run_agents

COMMAND = ["${env}", "${interpreter}", "-m", "finetune.train", "${args_no_hyphens}"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "me/p/s has no command; make it with `wandb sweep` from a file like those in sweeps/"),
        ({"command": ["sh", "-c", "x", "${args_no_hyphens}"]}, "a sweep file names no other program"),
        (
            {"command": COMMAND, "metric": {"name": "val/acc_best"}},
            "me/p/s: metric val/acc_best without a goal would be minimized, which keeps the worst trial",
        ),
        (
            {"command": COMMAND, "metric": {"name": "val/loss", "goal": "maximize"}},
            "val/loss would be maximized",
        ),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(agent, "open_sweep", lambda sweep: SimpleNamespace(config=config))
    with pytest.raises(Refused, match=message.replace("{", r"\{")):
        run_agents("me/p/s")


def test_what_names_no_sweep_is_refused() -> None:
    with pytest.raises(Refused, match="me/p is not a sweep; give ENTITY/PROJECT/ID, as `wandb sweep` printed it"):
        run_agents("me/p")
