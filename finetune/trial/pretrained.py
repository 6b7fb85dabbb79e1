"""The network and the images of a trial, for a Trainer of one's own."""

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.compose import compose_config, override, shipped
from finetune.config import Config
from finetune.data.augment import Augment, Preprocess, build_mix
from finetune.data.batches import PixelData
from finetune.data.table import is_table
from finetune.errors import Refused
from finetune.network.catalog import NetworkInput, input_of, with_input
from finetune.network.freeze import cut_of
from finetune.network.network import build_network
from finetune.sharing.facts import Facts, find_weights
from finetune.sharing.images import decode_images, find_data
from finetune.trial import module
from finetune.trial.trainer import build_module, quieten

_OF_NETWORK = re.compile(
    r"seed|optim|model(?!\.head\.init)|trainer\.metric|augment\.(mixup|cutmix)|data\.(size|interpolation)"
)
_OF_IMAGES = re.compile(r"seed|data(?!\.class_weights)|augment(?!\.(mixup|cutmix))|cache\.(dir|max_gb|views)")
"""Settings of a trial that a network, or its images, take; the others are the Trainer's, or a trial's alone."""


def _refuse_without_effect(overrides: Sequence[str], taken: re.Pattern[str], by: str) -> None:
    """Make sure that no setting would be ignored.

    Raises:
        Refused: one would.
    """
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        if not re.match(rf"(?:{taken.pattern})(?:\.|$)", key):
            raise Refused(
                f"{word} has no effect on {by}; give it to whom it belongs, the Trainer, the network or the images, or "
                "run a trial with `finetune train`"
            )


class FineTune(module.FineTune):
    """A LightningModule for a Trainer of one's own; `history` has the figures of each epoch."""

    input: NetworkInput
    """The images that its weights were trained with."""

    @classmethod
    def from_pretrained(
        cls,
        backbone: str = "resnet50",
        *,
        classes: int,
        freeze_depth: int | float | str = "all",
        lr: float = 1e-3,
        weights: str | Path | None = None,
        overrides: Sequence[str] = (),
    ) -> "FineTune":
        """A pretrained network whose first units are frozen, with a new head.

        ```python
        module = finetune.FineTune.from_pretrained("resnet50", freeze_depth=14, classes=10, lr=1e-3)
        pl.Trainer(max_epochs=5).fit(module, finetune.ImageData("photos"))
        ```

        Args:
            backbone: A network of torchvision, `timm/NAME`, or one that was registered.
            classes: How many.
            freeze_depth: Units that are frozen, 0 up, or `all`; `finetune depths NAME` lists them.
            lr: Learning rate of the optimizer.
            weights: A file, or a name of torchvision's; without it, the network's own.
            overrides: Other settings of a trial, `KEY=VALUE` each: `model.head.hidden=[128]`, `optim=sgd` …

        Raises:
            Refused: a setting is wrong, or there are no such weights.
        """
        _refuse_without_effect(overrides, _OF_NETWORK, "FineTune.from_pretrained")
        shipped_model = shipped("conf") / "model" / f"{backbone}.yaml"
        words = [
            override("model" if shipped_model.is_file() else "model.backbone", backbone),
            override("model.freeze_depth", freeze_depth),
            override("optim.lr", lr),
            *([] if weights is None else [override("model.weights", str(weights))]),
            *overrides,
        ]
        config = with_input(compose_config(words))
        quieten()

        values = find_weights(config, Facts())
        network = build_network(config.model, values, cut_of(config), classes, config.seed, True, config.data.size)
        mix = build_mix(config.augment, classes)
        built = build_module(network, config.optim, metric=config.trainer.metric, mix=mix, kind=cls)
        assert isinstance(built, cls)
        built.input = NetworkInput(config.data.size, config.data.interpolation, values.mean, values.std)
        return built


class ImageData(PixelData):
    """The images of a folder or a table for a Trainer of one's own: a LightningDataModule.

    They are found, split, decoded once and augmented as a trial's are; classes are known at once, pixels once a Trainer
    asks for them. Mean and standard deviation, and without `size` the size, are those of the `FineTune` that it is
    fitted with, for another module ImageNet's.

    ```python
    data = finetune.ImageData("photos", size=224, augment="standard")
    module = finetune.FineTune.from_pretrained("resnet50", freeze_depth=14, classes=len(data.classes), lr=1e-3)
    pl.Trainer(max_epochs=5).fit(module, data)
    ```
    """

    def __init__(
        self,
        root: str | Path,
        *,
        size: int | None = None,
        augment: str = "none",
        batch_size: int = 32,
        seed: int = 0,
        overrides: Sequence[str] = (),
    ):
        """`root` is a folder of class folders, or a table that ends in .csv or .tsv.

        `augment` is an option of `conf/augment`: none, standard or strong. `overrides` are other settings of a trial,
        `KEY=VALUE` each: `data.val_fraction=0.3`, `cache.dir=/scratch` …

        Raises:
            Refused: the images cannot be used.
        """
        _refuse_without_effect(overrides, _OF_IMAGES, "ImageData")
        key = "data.csv" if is_table(Path(root).expanduser()) else "data.root"
        words = [
            override(key, str(root)),
            override("augment", augment),
            override("data.batch_size", batch_size),
            override("seed", seed),
            *([] if size is None else [override("data.size", size)]),
            *overrides,
        ]
        self.config = compose_config(words)
        super().__init__(
            {}, _preprocess(self.config, input_of("resnet50")), self.config.data.batch_size, self.config.seed
        )

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the logits."""
        return find_data(self.config).classes

    def files(self, split: str) -> dict[str, list[Path]]:
        """The images of `train`, `val` or `test` by class.

        Raises:
            KeyError: there is no such split.
        """
        data = find_data(self.config)
        samples = data.splits[split]
        by_class: dict[str, list[Path]] = {name: [] for name in data.classes}
        for path, label in zip(samples.paths, samples.labels, strict=True):
            by_class[data.classes[label]].append(path)
        return by_class

    def setup(self, stage: str) -> None:
        """Decode the images, or find them decoded."""
        if not self.stores:
            assert self.trainer is not None
            own = getattr(self.trainer.lightning_module, "input", None)
            expected = own if isinstance(own, NetworkInput) else input_of("resnet50")
            config = with_input(self.config, expected)
            images = decode_images(config, find_data(config))
            for warning in images.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            self.stores = images.splits
            self.preprocess = _preprocess(self.config, expected)
        if stage == "test" and "test" not in self.stores:
            raise Refused("there are no test images; add test/ beside train/, or set data.use_val_as=test")
        super().setup(stage)


def _preprocess(config: Config, expected: NetworkInput) -> Preprocess:
    return Preprocess(expected.mean, expected.std, Augment.from_config(config.augment))
