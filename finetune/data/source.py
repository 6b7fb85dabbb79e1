"""The images that a config names: a folder, a table, or the embedded set."""

from pathlib import Path

from finetune.config import DataConfig
from finetune.data.folders import labelled_images
from finetune.data.samples import DataSet, load_samples
from finetune.data.shapes import EMBEDDED, embedded_folder
from finetune.data.table import is_table, labelled_rows


def find_samples(data: DataConfig, cache: Path) -> DataSet:
    """The images of `data` by name, split; the embedded set is drawn into `cache` the first time.

    Raises:
        Refused: folders or tables that cannot be used, by name.
    """
    root = str(embedded_folder(cache)) if data.root == EMBEDDED else data.root
    return load_samples(
        root,
        data.csv,
        data.val_fraction,
        data.split_seed,
        data.use_val_as,
        folders={"train": data.train_dir, "val": data.val_dir, "test": data.test_dir},
        links=data.links,
        columns=data.csv_columns,
        folds=data.folds,
        fold=data.fold,
        groups=data.groups,
    )


def find_labelled(data: Path, split: str | None = None) -> tuple[str | None, list[tuple[Path, str]], list[str]]:
    """The images of one split of a folder or a table, with their class names, to measure a model on.

    Returns:
        The split's name, None where there are no splits; the images in order of their paths; and what was passed over.

    Raises:
        Refused: no such folder, table or split, or no images in it.
    """
    return labelled_rows(data, split) if is_table(data) else labelled_images(data, split)
