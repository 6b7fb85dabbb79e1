"""Using a trained model: predictions for images, and how good they are."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.commands.model import Model, load_model
from finetune.console import console, plain_table
from finetune.errors import Refused, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finetune.export.classifier import Classifier
    from finetune.records.scores import Confusion

DEVICES = ("auto", "cpu", "cuda", "mps")
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images computed together.")]

_WIDEST = 12
"""Classes of which the whole confusion matrix is printed; of more, only the most frequent mistakes."""
_MISTAKES = 15
"""How many of these."""


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES", help="Image files, or folders that hold some.")],
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write every probability into a CSV file.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Classes to name for each image.")] = 3,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> int:
    """Print what a model sees in images.

    Each image gets its most probable classes with their softmax probabilities. Files that cannot be read are named and
    left out.
    """
    from finetune.data.folders import image_files

    _refuse_unusable(csv_file)
    files, notes = image_files(images)
    for note in notes:
        console.print(f"note: {note}")
    classifier = _load(model, device)
    classes = classifier.classes
    rows: list[list[Any]] = []
    for path, probabilities in _predictions(classifier, files, batch_size, device, "predicting"):
        if probabilities is None:
            continue
        best_first = probabilities.argsort()[::-1]
        shown = "  ".join(f"{classes[i]} {probabilities[i]:.3f}" for i in best_first[:top])
        console.print(f"{path}  {shown}")
        first = best_first[0]
        rows.append([path, classes[first], f"{probabilities[first]:.6f}", *(f"{p:.6f}" for p in probabilities)])

    if not rows:
        raise Refused(f"none of {counted(len(files), 'file')} could be read; give images")
    unreadable = len(files) - len(rows)
    if unreadable:
        console.print(f"predicted {counted(len(rows), 'image')}, left out {unreadable} that could not be read")
    if csv_file is not None:
        _write_csv(csv_file, [["file", "prediction", "probability", *classes], *rows])
    return 0


def test(
    model: Model,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A folder of class folders, or of splits that hold them; or a CSV.")
    ],
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="train, val or test; default test, else val, else all images.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the confusion matrix into a CSV file.")
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
) -> int:
    """Measure a model on labelled images.

    Prints the accuracy with its interval, precision and recall of each class, and the confusion matrix.
    """
    from finetune.data.source import find_labelled

    _refuse_unusable(csv_file)
    name, labelled, notes = find_labelled(data, split)
    for note in notes:
        console.print(f"note: {note}")
    classifier = _load(model, device)
    confusion = _measure(classifier, labelled, str(data), batch_size, device)
    if not confusion.images:
        raise Refused(f"{data}: none of {counted(len(labelled), 'image')} could be read; give others")

    if name != "test" and classifier.refit:
        console.print("note: this is a refit, which may have trained on these images; only a test set can measure it")
    _print_accuracy(confusion, name)
    _print_classes(confusion)
    _print_confusion(confusion)
    if csv_file is not None:
        counts = zip(confusion.classes, confusion.counts.tolist(), strict=True)
        _write_csv(csv_file, [["true \\ predicted", *confusion.classes], *([true, *row] for true, row in counts)])
    return 0


def _predictions(
    classifier: "Classifier", files: Sequence[Path], batch_size: int, device: str, what: str
) -> "Iterator[tuple[Path, NDArray[np.float32] | None]]":
    """The probabilities of each file, in order; None for one that cannot be read, which is named."""
    from rich.progress import track

    from finetune.export.predict import probabilities_of

    predictions = probabilities_of(classifier, files, batch_size, device)
    hidden = not console.is_terminal
    for path, row in track(predictions, what, len(files), console=console, transient=True, disable=hidden):
        if isinstance(row, str):
            console.print(f"left out {path}: {row}")
        yield path, None if isinstance(row, str) else row


def _measure(
    classifier: "Classifier", labelled: Sequence[tuple[Path, str]], where: str, batch_size: int, device: str
) -> "Confusion":
    """What the images that can be read are taken for."""
    import numpy as np

    from finetune.records.scores import Confusion, class_numbers

    files = [path for path, _ in labelled]
    numbers = class_numbers([label for _, label in labelled], classifier.classes, where)

    true: list[int] = []
    predicted: list[int] = []
    predictions = _predictions(classifier, files, batch_size, device, "testing")
    for (_, probabilities), number in zip(predictions, numbers.tolist(), strict=True):
        if probabilities is not None:
            true.append(number)
            predicted.append(int(probabilities.argmax()))
    return Confusion(classifier.classes, np.array(true, np.int64), np.array(predicted, np.int64))


def _print_accuracy(confusion: "Confusion", split: str | None) -> None:
    low, high = confusion.interval
    console.print(
        f"accuracy {confusion.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}) on "
        f"{counted(confusion.images, 'image')}{f' of {split}/' if split else ''}; "
        f"mean recall of the classes {confusion.mean_recall:.3f}"
    )


def _print_classes(confusion: "Confusion") -> None:
    table = plain_table("")
    for column in ("class", "images", "right", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "class" else "right", no_wrap=True)
    for figures in confusion.per_class:
        shares = (figures.precision, figures.recall, figures.f1)
        cells = ("–" if share is None else f"{share:.3f}" for share in shares)
        table.add_row(figures.name, str(figures.images), str(figures.right), *cells)
    console.print(table)


def _print_confusion(confusion: "Confusion") -> None:
    classes = confusion.classes
    if len(classes) > _WIDEST:
        console.print("most frequent mistakes (--csv FILE has the whole matrix):")
        for mistake in confusion.mistakes[:_MISTAKES]:
            true, predicted = classes[mistake.true], classes[mistake.predicted]
            console.print(f"  {mistake.images} × {true} taken for {predicted}")
        return

    table = plain_table("confusion: rows are the true classes, columns what the model said")
    table.add_column("")
    for i in range(len(classes)):
        table.add_column(str(i), justify="right")
    for i, row in enumerate(confusion.counts.tolist()):
        table.add_row(f"{i} {classes[i]}", *(str(count) if count else "·" for count in row))
    console.print(table)


def _load(model: Path, device: str) -> "Classifier":
    from finetune.network.device import device_named

    if device not in DEVICES:
        raise Refused(f"--device {device}: it is not known; give {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    device_named(device)  # refuses what cannot be used, before anything is read

    classifier, _, _ = load_model(model)
    return classifier


def _refuse_unusable(csv_file: Path | None) -> None:
    from finetune.storage.durable import refuse_unwritable

    if csv_file is None:
        return
    if csv_file.is_dir():
        raise Refused(f"--csv {csv_file} is a folder; give the name of a file")
    refuse_unwritable(csv_file, "--csv")


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    from finetune.storage.durable import write_durably

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_durably(path, text.getvalue().encode(errors="surrogateescape"))
    console.print(f"written: {path}")
