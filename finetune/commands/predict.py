"""Using a trained model: predictions for images, and how good they are."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.commands.model import Model, record_of
from finetune.console import console, plain_table
from finetune.errors import Refused, counted

if TYPE_CHECKING:
    from finetune.export.classifier import Classifier


Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images computed together.")]


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
    from rich.progress import track

    from finetune.export.predict import image_files, probabilities_of

    _refuse_folder(csv_file)
    files = image_files(images)
    classifier = _load(model, device)
    header = ["file", "prediction", "probability", *classifier.classes]
    rows: list[list[Any]] = []
    unread = 0
    answers = probabilities_of(classifier, files, batch_size, device)
    for path, row in track(
        answers, "predicting", len(files), console=console, transient=True, disable=not console.is_terminal
    ):
        if isinstance(row, str):
            unread += 1
            console.print(f"left out {path}: {row}")
            continue
        order = row.argsort()[::-1]
        seen = "  ".join(f"{classifier.classes[i]} {row[i]:.3f}" for i in order[:top])
        console.print(f"{path}  {seen}")
        rows.append([path, classifier.classes[order[0]], f"{row[order[0]]:.6f}", *(f"{p:.6f}" for p in row)])
    if not rows:
        raise Refused(f"none of {counted(len(files), 'file')} could be read; give images")
    if unread:
        console.print(f"predicted {counted(len(rows), 'image')}, left out {unread} that could not be read")
    if csv_file is not None:
        _write_csv(csv_file, [header, *rows])
    return 0


def test(
    model: Model,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A folder of class folders, or of splits that hold them.")
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
    from rich.progress import track

    from finetune.data.folders import labelled_images
    from finetune.export.predict import probabilities_of
    from finetune.records.scores import Confusion
    from finetune.report.winner import model_file

    _refuse_folder(csv_file)
    name, labelled = labelled_images(data, split)
    classifier = _load(model, device)
    confusion = Confusion.empty(classifier.classes, sorted({label for _, label in labelled}), str(data))
    answers = probabilities_of(classifier, [path for path, _ in labelled], batch_size, device)
    unread = 0
    for (path, row), (_, label) in zip(
        track(answers, "testing", len(labelled), console=console, transient=True, disable=not console.is_terminal),
        labelled,
        strict=True,
    ):
        if isinstance(row, str):
            unread += 1
            console.print(f"left out {path}: {row}")
        else:
            confusion.add(label, int(row.argmax()))
    if not confusion.images:
        raise Refused(f"{data}: none of {counted(len(labelled), 'image')} could be read; give others")
    record = record_of(model_file(model)[0])
    if name != "test" and (classifier.refit or (record is not None and record.config.get("trainer.refit"))):
        console.print("note: this is a refit, which may have trained on these images; only a test set can measure it")
    low, high = confusion.interval
    console.print(
        f"accuracy {confusion.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}) on "
        f"{counted(confusion.images, 'image')}{f' of {name}/' if name else ''}; "
        f"mean recall of the classes {confusion.mean_recall:.3f}"
    )
    table = plain_table("")
    for column in ("class", "images", "right", "precision", "recall", "F1"):
        table.add_column(column, justify="left" if column == "class" else "right", no_wrap=True)
    for figures in confusion.per_class:
        shares = (figures.precision, figures.recall, figures.f1)
        cells = ("–" if share is None else f"{share:.3f}" for share in shares)
        table.add_row(figures.name, str(figures.images), str(figures.right), *cells)
    console.print(table)
    _print_confusion(confusion.classes, confusion.counts.tolist())
    if csv_file is not None:
        lines = [[n, *row] for n, row in zip(confusion.classes, confusion.counts.tolist(), strict=True)]
        _write_csv(csv_file, [["true \\ predicted", *confusion.classes], *lines])
    return 0


_WIDEST = 12
"""Classes of which the whole confusion matrix is printed; of more, only the mistakes."""


def _print_confusion(classes: tuple[str, ...], counts: list[list[int]]) -> None:
    if len(classes) <= _WIDEST:
        table = plain_table("confusion: rows are the true classes, columns what the model said")
        table.add_column("")
        for i in range(len(classes)):
            table.add_column(str(i), justify="right")
        for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
            table.add_row(f"{i} {name}", *(str(n) if n else "·" for n in row))
        console.print(table)
        return
    wrong = [(n, classes[i], classes[j]) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    console.print("most frequent mistakes (--csv FILE has the whole matrix):")
    for n, true, said in sorted(wrong, reverse=True)[:15]:
        console.print(f"  {n} × {true} taken for {said}")


def _load(model: Path, device: str) -> "Classifier":
    import torch

    from finetune.export.classifier import load_classifier
    from finetune.report.winner import model_file

    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        why = "torch finds no GPU here" if device == "cuda" else "it is not known"
        raise Refused(f"--device {device}: {why}; give auto, cpu or cuda")
    file, note = model_file(model)
    if note:
        console.print(f"note: {note}")
    return load_classifier(file)


def _refuse_folder(csv_file: Path | None) -> None:
    if csv_file is not None and csv_file.is_dir():
        raise Refused(f"--csv {csv_file} is a folder; give the name of a file")


def _write_csv(path: Path, rows: list[list[Any]]) -> None:
    from finetune.storage.durable import write_durably

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_durably(path, text.getvalue().encode(errors="surrogateescape"))
    console.print(f"written: {path}")
