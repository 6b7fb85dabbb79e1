"""From a sweep to a model: name the winner, train it on all images, export it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.console import console
from finetune.errors import Refused

if TYPE_CHECKING:
    from finetune.records.result import Result


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
    from finetune.compose import override
    from finetune.records.layout import CHECKPOINT, REFIT, SWEEP, TRIALS
    from finetune.records.repeat import repeat_overrides
    from finetune.report.table import verdict
    from finetune.report.winner import find_winner

    winner = find_winner(folder)
    again = repeat_overrides(winner.best.config)
    console.print(verdict(winner.table))
    for trial in winner.trials:
        kept = folder / TRIALS / trial.key / CHECKPOINT
        where = f"  {kept}" if kept.is_file() else ""
        console.print(f"  seed {trial.seed}: val/acc {trial.val_acc_best:.3f}, {trial.key}{where}")
    console.print(f"repeat it (seed {winner.best.seed}, the best of {len(winner.trials)}):")
    console.print(f"  python -m finetune.train {shlex.join(again)}")
    given = {"trainer.refit": True, "trainer.epochs": winner.epochs, "trainer.patience": None}
    words = repeat_overrides({**winner.best.config, **given})
    place = out or folder / REFIT
    words.append(override("out", str(place)))
    if not refit:
        console.print(f"train it on all images: finetune best {folder} --refit")
        console.print(f"use it: finetune export {folder} OUT, or finetune predict {folder} IMAGES")
        return 0
    if (place / SWEEP).exists():
        raise Refused(f"--out {place} is the folder of a sweep; give a new one")
    console.print(f"on all images, for {winner.epochs} epochs:\n  python -m finetune.train {shlex.join(words)}")
    from finetune.train import run_trial

    code = run_trial(words)
    if code == 0:
        console.print(f"use it: finetune export {place} OUT, or finetune predict {place} IMAGES")
    return code


def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.")],
) -> int:
    """Write a model that others can use without finetune.

    OUT gets model.onnx, model.pt2, model.safetensors (torchvision's layout), classes.json and a model card, README.md,
    with the code to use them.
    """
    from dataclasses import asdict, replace

    import torchvision

    from finetune.export.card import model_card, torchvision_code
    from finetune.export.classifier import load_classifier
    from finetune.export.write import export as write
    from finetune.records.repeat import repeat_overrides
    from finetune.report.winner import model_file, sweep_verdict

    file, note = model_file(model)
    if note:
        console.print(f"note: {note}")
    classifier, result = load_classifier(file), record_of(file)
    if result is not None:
        classifier = replace(classifier, refit=bool(result.config.get("trainer.refit")))
    name, classes = classifier.model.backbone, classifier.classes
    known = name in torchvision.models.list_models()
    layers = [f"torch.nn.{layer!r}" for layer in classifier.head]
    code = torchvision_code(name, classifier.backbone.classifier, layers, len(classes)) if known else ""
    command = repeat_overrides(result.config) if result else []
    chosen = sweep_verdict(file.parent) if result else ""
    card = model_card(classifier.model, classes, asdict(classifier.preprocessing), code, result, chosen, command)
    write(classifier, out, card)
    for path in sorted(out.iterdir()):
        console.print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    console.print(f"{out / 'README.md'} says how to use them")
    return 0


def record_of(file: Path) -> "Result | None":
    """The record of the trial whose checkpoint `file` is; None where it lies alone."""
    from finetune.records.result import Result

    try:
        return Result.load(file.parent)
    except (FileNotFoundError, ValueError):
        return None
