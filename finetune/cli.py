"""The `finetune` command. Every subcommand imports what it needs when it runs."""

import errno
import io
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

from finetune.commands import inspect, model, plan, predict, report, sweep, train, wandb
from finetune.commands.grouped_help import GroupedHelp
from finetune.commands.sweep import this_command
from finetune.console import console
from finetune.errors import Interrupted, Refused
from finetune.plugin import take_plugin
from finetune.storage.system import END_CODES
from finetune.version import full_version

app = typer.Typer(
    help="How deep should a pretrained network stay frozen, with which learning rate and which head?",
    epilog="""From images to a model:

\b
  finetune check FOLDER
  finetune sweep explore.yaml data.root=FOLDER
  finetune report runs/explore
  finetune export runs/explore MODEL
  finetune predict MODEL IMAGES

One trial is `finetune train KEY=VALUE…`. --debug shows where an error comes from.""",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"finetune {full_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """How deep should a pretrained network stay frozen, with which learning rate and which head?"""


app.command(cls=GroupedHelp)(sweep.sweep)
# Its words are settings, and --help is Hydra's, which lists them
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(train.train)
app.command()(wandb.agent)
app.command()(wandb.scheduler)
app.command()(sweep.status)
app.command()(report.report)
app.command()(report.compare)
app.command()(wandb.sync)
app.command()(wandb.dashboard)
app.command()(plan.plan)
app.command()(inspect.depths)
app.command()(inspect.backbones)
app.command()(inspect.check)
app.command()(model.best)
app.command()(model.export)
app.command()(predict.predict)
app.command()(predict.test)


def main() -> int:
    """The console script; returns the exit code, which docs/reliability.md explains."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    for number in END_CODES.keys() - {signal.SIGINT}:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _on_sigterm)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text

    try:
        code = app(take_plugin(arguments) or ["--help"], standalone_mode=False)
        return int(code or 0)
    except typer.Exit as done:
        return done.exit_code
    except Refused as error:
        return _refused(str(error), debug)
    except KeyboardInterrupt:
        return 130
    except Interrupted as interrupt:
        return interrupt.code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return _failed(error, debug)
        print(f"stopped: {error}; make room, then run the same command again: {this_command()}", file=sys.stderr)
        return 4
    except Exception as error:
        # A mistyped option or command; typer's own classes of errors differ from version to version.
        return _refused(error.format_message(), debug) if hasattr(error, "format_message") else _failed(error, debug)


def _refused(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"refused: {message}", file=sys.stderr)
    return 2


def _failed(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"failed: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
    return 1


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Interrupted(143)


if __name__ == "__main__":
    sys.exit(main())
