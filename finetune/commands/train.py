"""`finetune train`: one trial."""

import sys

import typer


def train(context: typer.Context) -> int:
    """Run one trial: KEY=VALUE… as `python -m finetune.train` takes them; --help lists the settings."""
    from finetune.train import main

    debug = ["--debug"] if "--debug" in sys.argv else []  # which the command's own main takes for itself
    sys.argv = ["finetune train", *context.args, *debug]
    return main()
