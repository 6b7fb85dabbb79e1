"""finetune from Python: images for a Trainer of one's own, sweeps, what they recorded, and the models they trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import Refused, one_line

if TYPE_CHECKING:
    import pandas as pd

    from finetune.export.classifier import Classifier


def run_sweep(
    file: str | Path,
    data_root: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    trials: int | None = None,
    workers: int | None = None,
    budget: float | None = None,
    margin: float | None = 0.02,
    seed: int = 0,
) -> "Sweep":
    """Run a sweep on this machine, or continue it, as `finetune sweep` does; it ends with a verdict.

    ```python
    sweep = finetune.run_sweep("explore.yaml", data_root="photos")
    sweep.report()          # in a notebook, the page
    ```

    Args:
        file: A W&B sweep file, or the name of a shipped one.
        data_root: Folder of the images; the file, or `overrides`, may name it too.
        overrides: Settings of every trial, `KEY=VALUE` each.
        out: Folder of the sweep; `runs/NAME` without one.
        trials: How many at the most.
        workers: Trials at a time; one a GPU or core without it.
        budget: Seconds after which no trial starts.
        margin: The difference of accuracy that is worth having, 0..1; None runs the file's trials and repeats none.
        seed: Of the search, not of the trials.

    Raises:
        Refused: the file, a setting or the images cannot be used; the message says what to do.
    """
    from finetune.commands.display import watching
    from finetune.compose import override
    from finetune.sweep import run
    from finetune.sweep.spec import find_sweep, read_sweep
    from finetune.sweep.state import Options

    settings = [*([] if data_root is None else [override("data.root", str(data_root))]), *overrides]
    spec = read_sweep(find_sweep(str(file)), tuple(settings), trials)
    folder = Path("runs") / spec.name if out is None else Path(out)
    with watching() as (watch, show):
        run.run_sweep(spec, folder, Options(workers=workers, budget=budget, margin=margin), seed, watch, show)
    return Sweep(folder)


def read_records(folder: str | Path) -> "pd.DataFrame":
    """Every trial of a sweep as a row: status, figures, costs, and settings by their keys.

    Raises:
        Refused: the folder holds no records, or pandas cannot be imported.
    """
    from finetune.records.read import read_records as read
    from finetune.report.rows import row_of

    records = read(Path(folder))
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise Refused("records as a data frame need pandas; pip install pandas") from error
    except ImportError as error:  # of one that wants another NumPy
        why = one_line(error.__cause__ or error)
        raise Refused(f"pandas cannot be imported ({why}); pip install -U pandas numpy") from error
    return pd.DataFrame([row_of(record) for record in records])


def load(model: str | Path) -> "Model":
    """What a trial, a sweep's winner or an export has learned.

    ```python
    finetune.load("runs/explore").predict(["a.jpg", "b.jpg"])
    ```

    Args:
        model: A `best.safetensors`, or the folder of a trial, a sweep or an export.

    Raises:
        Refused: there is none, or the weights that it stands on are not there.
    """
    from finetune.commands.model import load_model

    return Model(load_model(Path(model))[0])


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep that was run, here or by another process."""

    folder: Path

    @property
    def records(self) -> "pd.DataFrame":
        """Every trial as a row; see `read_records`."""
        return read_records(self.folder)

    def report(self) -> "Report":
        """Write the page, and say what was found."""
        from finetune.records.ranking import read_objective
        from finetune.records.read import read_records as read
        from finetune.report.page.page import write_report
        from finetune.report.table import tabulate
        from finetune.report.verdict import conclude

        records = read(self.folder)
        conclusions = conclude(records, tabulate(records, read_objective([self.folder])))
        return Report(write_report(self.folder, records), tuple(conclusions.sentences))

    def best(self) -> "Model":
        """The winner's model; see `load`."""
        return load(self.folder)


@dataclass(frozen=True)
class Report:
    """What a sweep found. A notebook shows its page."""

    page: Path
    """One HTML file, which fetches nothing."""
    verdict: tuple[str, ...]
    """In sentences."""

    def __str__(self) -> str:
        return "\n".join(self.verdict)

    def _repr_html_(self) -> str:
        """The page in a frame, so that its styles and the notebook's leave each other alone."""
        import html

        page = html.escape(self.page.read_text(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 800px; border: 0"></iframe>'


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image."""

    path: Path
    label: str
    """The most probable class."""
    probabilities: dict[str, float]
    """Of each class, 0..1."""


@dataclass(frozen=True)
class Model:
    """A trained network; `classifier.network` is the module."""

    classifier: "Classifier"

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.classifier.classes

    def predict(self, images: Sequence[str | Path], batch_size: int = 32, device: str = "auto") -> list[Prediction]:
        """What it says of image files, in their order.

        Args:
            images: Files of any size and kind that training reads.
            batch_size: Images computed together.
            device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

        Raises:
            Refused: a file cannot be read.
        """
        from finetune.export.predict import probabilities_of

        predictions = []
        for path, said in probabilities_of(self.classifier, [Path(image) for image in images], batch_size, device):
            if isinstance(said, str):
                raise Refused(f"{path} cannot be read ({said}); leave it out")
            shares = dict(zip(self.classes, map(float, said), strict=True))
            predictions.append(Prediction(path, max(shares, key=lambda name: shares[name]), shares))
        return predictions
