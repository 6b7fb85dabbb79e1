"""`finetune train`: one trial."""

import sys

import typer


def train(context: typer.Context) -> int:
    """Run one trial.

    KEY=VALUE… are its settings, as `python -m finetune.train` takes them.
    """
    from finetune.train import main

    debug = ["--debug"] if "--debug" in sys.argv else []  # which the command's own main takes for itself
    sys.argv = ["finetune train", *context.args, *debug]
    return main()
