"""The images that a config names: a folder, a table, or the embedded set."""

from pathlib import Path

from finetune.config import DataConfig
from finetune.data.samples import DataSet, load_samples
from finetune.data.shapes import EMBEDDED, embedded_folder


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
    )
