"""From a sweep to a model: name the winner, train it on all images, export it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.console import console
from finetune.errors import Refused

if TYPE_CHECKING:
    from finetune.export.classifier import Classifier
    from finetune.records.ranking import Objective
    from finetune.records.result import Result
    from finetune.report.winner import Winner


Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A best.safetensors, or the folder of a trial, a sweep or an export.")
]


def best(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep.")],
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Train it again, on the validation images too, for the epochs that were best."),
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the refit; default DIR/refit.")] = None,
) -> int:
    """Print a sweep's winner and its command.

    The winner is the configuration with the highest mean accuracy over its seeds; the command repeats it. With
    --refit it is trained once more, on training and validation images together.
    """
    from finetune.records.layout import REFIT
    from finetune.report.winner import find_winner

    winner = find_winner(folder)
    _print_winner(folder, winner)
    if refit:
        return _refit(winner, out or folder / REFIT)

    console.print(f"train it on all images: finetune best {folder} --refit")
    console.print(f"use it: finetune export {folder} OUT, or finetune predict {folder} IMAGES")
    return 0


def _print_winner(folder: Path, winner: "Winner") -> None:
    from finetune.records.layout import CHECKPOINT, TRIALS
    from finetune.records.repeat import repeat_command
    from finetune.report.table import winner_sentence

    console.print(winner_sentence(winner.table))
    for trial in winner.trials:
        checkpoint = folder / TRIALS / trial.key / CHECKPOINT
        where = f"  {checkpoint}" if checkpoint.is_file() else ""
        console.print(f"  seed {trial.seed}: {_results(trial, winner.table.objective)}, {trial.key}{where}")

    console.print(f"repeat it (seed {winner.best.seed}, the best of {len(winner.trials)}):")
    console.print(f"  {repeat_command(winner.best.config)}")


def _results(trial: "Result", objective: "Objective") -> str:
    """`val/acc 0.754`, after what the sweep optimises, if that is something else."""
    from finetune.records.ranking import ACCURACY

    accuracy = f"val/acc {trial.accuracy:.3f}"
    if objective == ACCURACY:
        return accuracy
    return f"{objective.name} {objective.value(trial):.3f}, {accuracy}"


def _refit(winner: "Winner", out: Path) -> int:
    """Train the winner on all images, into `out`; returns the exit code."""
    from finetune.compose import override
    from finetune.records.layout import SWEEP
    from finetune.records.repeat import repeat_overrides
    from finetune.storage.durable import refuse_unwritable

    if (out / SWEEP).exists():
        raise Refused(f"--out {out} is the folder of a sweep; give a new one")
    refuse_unwritable(out, "--out")

    # No image is left to choose the epoch by, so their number is what its seeds needed.
    changes = {"trainer.refit": True, "trainer.epochs": winner.epochs, "trainer.patience": None}
    overrides = [*repeat_overrides({**winner.best.config, **changes}), override("out", str(out))]
    console.print(f"on all images, for {winner.epochs} epochs:\n  python -m finetune.train {shlex.join(overrides)}")

    from finetune.train import run_trial

    code = run_trial(overrides)
    if code == 0:
        console.print(f"use it: finetune export {out} OUT, or finetune predict {out} IMAGES")
    return code


def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.")],
) -> int:
    """Write a model that others can use without finetune.

    OUT gets model.onnx, model.pt2, model.safetensors (as torchvision or timm load it), classes.json and a model card,
    README.md, with the code to use them.
    """
    from finetune.export.write import CARD, refuse_unusable
    from finetune.export.write import export as write

    refuse_unusable(out)
    classifier, record, file = load_model(model)
    write(classifier, out, _card(classifier, record, file))

    for path in sorted(out.iterdir()):
        console.print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    console.print(f"{out / CARD} says how to use them")
    return 0


def _card(classifier: "Classifier", record: "Result | None", file: Path) -> str:
    """The text of the model card of the classifier that was read from `file`."""
    from dataclasses import asdict

    from finetune.export.card import model_card
    from finetune.export.plain import library_of, plain_code
    from finetune.records.repeat import repeat_overrides
    from finetune.report.winner import sweep_verdict

    return model_card(
        classifier.model,
        classifier.classes,
        asdict(classifier.preprocessing),
        library_of(classifier.model.backbone),
        plain_code(classifier),
        record,
        chosen=sweep_verdict(file.parent) if record else "",
        command=repeat_overrides(record.config) if record else [],
    )


def load_model(model: Path) -> "tuple[Classifier, Result | None, Path]":
    """The classifier that `model` stands for, the record of its trial where it lies beside it, and the file."""
    from dataclasses import replace

    from finetune.export.classifier import load_classifier
    from finetune.report.winner import model_file

    file, note = model_file(model)
    if note:
        console.print(f"note: {note}")

    classifier, record = load_classifier(file), _record_beside(file)
    if record is not None:  # an export says itself whether it is a refit, a checkpoint's record does
        classifier = replace(classifier, refit=bool(record.config.get("trainer.refit")))
    return classifier, record, file


def _record_beside(file: Path) -> "Result | None":
    from finetune.records.result import Result

    try:
        return Result.load(file.parent)
    except (FileNotFoundError, ValueError):
        return None
