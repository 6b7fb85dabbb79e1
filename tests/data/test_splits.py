"""Which folders are the splits, and which are classes."""

from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from finetune.data.names import split_named
from finetune.data.samples import DataSet, load_samples
from finetune.errors import Refused
from tests.data.test_folders import drawn
from tests.data.test_samples import TWO_CLASSES, named


def under(folder: str, names: tuple[str, ...] = TWO_CLASSES) -> list[str]:
    return [f"{folder}/{name}" for name in names]


def as_torchvision(data: DataSet, split: str, folder: Path) -> None:
    """The split's images, classes and labels are those that ImageFolder finds in `folder`."""
    samples, theirs = data.splits[split], ImageFolder(folder)
    assert data.classes == tuple(theirs.classes)
    assert sorted(zip(map(str, samples.paths), samples.labels, strict=True)) == sorted(theirs.samples)


SETS = {
    "train, val, test": ("train", "val", "test"),
    "in capitals": ("TRAIN", "VAL", "TEST"),
    "capitalised": ("Train", "Val", "Test"),
    "in full": ("Training", "Validation", "Testing"),
    "Roboflow": ("train", "valid", "test"),
    "eval": ("train", "eval", "test"),
    "dev": ("train", "dev", "test"),
    "prefixed": ("seg_train", "seg_val", "seg_test"),
    "in themselves": ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
    "suffixed": ("train_images", "val_images", "test_images"),
    "with a year": ("train2017", "val2017", "test2017"),
    "sets": ("training_set", "validation_set", "test_set"),
    "camel case": ("imagesTrain", "imagesVal", "imagesTest"),
    "in one folder": ("data/train", "data/val", "data/test"),
    "deep in one": ("a/b/train", "a/b/val", "a/b/test"),
    "of which one is in itself": ("train", "val/val", "test"),
    "numbered": ("1_train", "2_val", "3_test"),
}


@pytest.mark.parametrize("case", SETS)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, case: str) -> None:
    root = drawn(tmp_path, *(name for folder in SETS[case] for name in under(folder)))
    data = load_samples(str(root))
    assert list(data.splits) == ["train", "val", "test"]
    for split, folder in zip(data.splits, SETS[case], strict=True):
        as_torchvision(data, split, root / folder)
    assert data.warnings == ()


@pytest.mark.parametrize("test", ["Testing", "test", "TEST", "seg_test"])
def test_a_test_set_without_validation_stays_a_test_set(tmp_path: Path, test: str) -> None:
    train = "seg_train" if test == "seg_test" else "Training"
    data = load_samples(str(drawn(tmp_path, *under(train), *under(test))), val_fraction=0.5)
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 2, "val": 2, "test": 4}
    as_torchvision(data, "test", tmp_path / test)


ONE_FOLDER = {
    "classes": ("dataset", ()),
    "classes, deep": ("a/b/dataset", ()),
    "classes in a number": ("EuroSAT/2750", ()),
    "in a folder called train_images": ("train_images", ()),
    "of macOS beside": ("dataset", ("__MACOSX/dataset/._1.png",)),
}


@pytest.mark.parametrize("case", ONE_FOLDER)
def test_a_folder_that_is_alone_is_looked_into(tmp_path: Path, case: str) -> None:
    folder, more = ONE_FOLDER[case]
    data = load_samples(str(drawn(tmp_path, *under(folder), *more)), val_fraction=0.5)
    assert data.classes == ("cat", "dog")
    assert data.warnings[0] == f"{tmp_path} holds one folder: the folders in {tmp_path / folder} are the classes"


def test_a_class_that_is_alone_is_no_wrapping(tmp_path: Path) -> None:
    one_class = (["cat/1.png"], ["cat/2023/1.png", "cat/2024/1.png"], ["cat/2023/1.png"], ["cat/2023/a/1.png"])
    for i, files in enumerate(one_class):
        with pytest.raises(Refused, match=r"found 1 class \(cat\) to train on"):
            load_samples(str(drawn(tmp_path / str(i), *files)))
    root = drawn(tmp_path / "s", *under("train"), "val/cat/2023/1.png")
    assert named(load_samples(str(root)), "val") == [("cat", "1.png")]


UNUSED = {
    "a flat test set": (["test/1.png", "test/2.png"], "test (2 images in no class folder)"),
    "an empty val": (["val/readme.txt"], "val (no images)"),
    "other folders": (["extra/1.png", "holdout/cat/1.png"], "extra (1 image in no class folder), holdout (1 folder"),
    "annotations": (["annotations/x.xml"], "annotations (no images)"),
    "a flat val": (["val/1.png", *under("test")], "val (1 image in no class folder)"),
    "predictions": (["seg_pred/1.png"], "seg_pred (1 image in no class folder)"),
}


@pytest.mark.parametrize("case", UNUSED)
def test_every_folder_beside_the_splits_that_is_not_used_is_named(tmp_path: Path, case: str) -> None:
    files, text = UNUSED[case]
    root = drawn(tmp_path, *under("train"), *(name for name in files if name.endswith(".png")))
    for name in files:
        if not name.endswith(".png"):
            (root / name).parent.mkdir()
            (root / name).write_text("x")
    data = load_samples(str(root), val_fraction=0.5)
    assert data.classes == ("cat", "dog")
    assert data.warnings[0].startswith(f"{root}: not used: {text}")


UNDECIDED = {
    "no train": (
        [*under("valid"), *under("test")],
        r"test, valid look like splits, but none that holds class folders is named train; set data\.train_dir=FOLDER",
    ),
    "classes beside a test set": (
        [*TWO_CLASSES, *under("test")],
        r"test looks like a split, but none that holds class folders is named train; .* data\.train_dir=\. if they are",
    ),
    "two of validation": ([*under("train"), *under("val"), *under("valid")], r"val and valid .* set data\.val_dir=val"),
    "two of validation by other names": ([*under("train"), *under("dev"), *under("eval")], r"set data\.val_dir=dev"),
    "two of training": ([*under("train"), *under("Training")], r"could each be the train split; set data\.train_dir="),
    "two sets": (
        [*under("seg_train"), *under("seg_test"), *under("train"), *under("test")],
        r"train and seg_train could each be the train split; set data\.train_dir=train",
    ),
    "splits in classes": (
        ["cat/train/1.png", "cat/test/2.png", "dog/train/1.png", "dog/test/2.png"],
        r"every folder holds splits of its own \(test, train in cat\); move them to train/cat and so on, or set data",
    ),
    "splits in some classes": (
        ["cat/train/1.png", "cat/test/2.png", "dog/train/1.png"],
        r"every folder holds splits of its own",
    ),
    "folds": (
        [name for i in (1, 2, 3) for name in under(f"fold{i}")],
        r"fold1, fold2, fold3 all hold the same folders \(cat, dog\), as splits do; set data\.train_dir=fold1",
    ),
    "folds of digits": (
        [f"fold_{i}/{digit}/x.png" for i in (1, 2) for digit in (0, 1)],
        r"fold_1, fold_2 all hold the same folders",
    ),
    "variants": (
        [*under("color"), *under("grayscale"), *under("segmented")],
        r"color, grayscale, segmented all hold the same folders",
    ),
    "parts": (
        ["images_part_1/1.png", "images_part_2/2.png"],
        r"images_part_1, images_part_2 look like parts of one set, and no class folders",
    ),
    "flat splits": (["train/1.png", "test/2.png"], r"test, train look like splits, and .*test holds no class folders"),
    "flat splits with a year": (["train2017/1.png", "val2017/2.png"], r"train2017, val2017 look like splits"),
    "flat splits beside others": (["train/1.png", "val/2.png", "bus/3.png"], r"train, val look like splits"),
    "a flat train alone": (["train/cat.1.png", "train/dog.1.png"], r"train holds no class folders; put the images"),
}


@pytest.mark.parametrize("case", UNDECIDED)
def test_what_cannot_be_told_is_refused_with_the_key_that_decides(tmp_path: Path, case: str) -> None:
    files, text = UNDECIDED[case]
    with pytest.raises(Refused, match=text):
        load_samples(str(drawn(tmp_path, *files)))


@pytest.mark.parametrize("case", [case for case in UNDECIDED if case != "a flat train alone"])
def test_a_dot_takes_every_folder_as_a_class(tmp_path: Path, case: str) -> None:
    root = drawn(tmp_path, *UNDECIDED[case][0])
    data = load_samples(str(root), val_fraction=0.5, folders={"train": "."}) if case not in SINGLE else None
    if data is None:
        with pytest.raises(Refused, match="has one image, which cannot be split"):
            load_samples(str(root), folders={"train": "."})
        return
    assert data.classes == tuple(sorted({Path(name).parts[0] for name in UNDECIDED[case][0]}))
    paths = {(str(path), label) for s in data.splits.values() for path, label in zip(s.paths, s.labels, strict=True)}
    assert paths == set(ImageFolder(root).samples)


SINGLE = ("parts", "flat splits", "flat splits with a year", "flat splits beside others", "splits in some classes")


CHOSEN = {
    "all": ({"train": "fold1", "val": "fold2", "test": "fold3"}, {"train": "fold1", "val": "fold2", "test": "fold3"}),
    "train and val": ({"train": "fold1", "val": "fold2"}, {"train": "fold1", "val": "fold2"}),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_folders_that_are_set_are_taken(tmp_path: Path, case: str) -> None:
    chosen, expected = CHOSEN[case]
    root = drawn(tmp_path, *(name for i in (1, 2, 3) for name in under(f"fold{i}")))
    data = load_samples(str(root), folders={"train": None, "val": None, "test": None, **chosen})
    assert data.splits.keys() == expected.keys()
    for split, folder in expected.items():
        as_torchvision(data, split, root / folder)
    unused = {"all": (), "train and val": (f"{root}: not used: fold3 (2 folders with images)",)}
    assert data.warnings == unused[case]


def test_a_folder_that_is_set_decides_between_two(tmp_path: Path) -> None:
    root = drawn(tmp_path, *under("train"), *under("val"), *under("valid"), *under("test"))
    data = load_samples(str(root), folders={"val": "valid"})
    assert list(data.splits) == ["train", "val", "test"]
    as_torchvision(data, "val", root / "valid")
    assert data.warnings == (f"{root}: not used: val (2 folders with images)",)


def test_classes_in_the_root_have_a_test_set_beside_them(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES, *under("test"), *under("far/away"))
    data = load_samples(str(root), val_fraction=0.5, folders={"train": ".", "test": "test", "val": "far/away"})
    assert data.classes == ("cat", "dog", "far")  # far/ is a folder of the root that holds images
    data = load_samples(str(root / "far" / "away"), folders={"train": ".", "val": str(root / "test")})
    as_torchvision(data, "val", root / "test")
    assert data.classes == ("cat", "dog")


def test_a_folder_that_is_set_and_is_none_is_refused(tmp_path: Path) -> None:
    root = drawn(tmp_path, *under("train"))
    with pytest.raises(Refused, match=r"data\.val_dir=valid: .*valid is not a folder; name one that is"):
        load_samples(str(root), folders={"val": "valid"})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", ("train", "")),
        ("VALIDATION", ("val", "")),
        ("test1", ("test", "")),
        ("ILSVRC2012_img_val", ("val", "ilsvrc img")),
        ("trainset", ("train", "set")),
        ("trainers", None),
        ("contest", None),
        ("invalid", None),
        ("train_test", None),
        ("development", None),
    ],
)
def test_what_a_name_says(name: str, split: tuple[str, str] | None) -> None:
    assert split_named(name) == split


def test_numbered_classes_are_no_parts(tmp_path: Path) -> None:
    root = drawn(tmp_path, *(f"class_{i}/{j}.png" for i in range(3) for j in range(2)))
    assert load_samples(str(root), val_fraction=0.5).classes == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("files", [["train/1.png", "train/2.png"], ["images/1.png", "images/2.png"]])
def test_a_table_beside_images_without_class_folders_is_pointed_at(tmp_path: Path, files: list[str]) -> None:
    root = drawn(tmp_path, *files)
    (root / "labels.csv").write_text("path,label\n")
    with pytest.raises(Refused, match=r"is .*labels\.csv a table of their classes\? then set data\.csv=.*labels\.csv"):
        load_samples(str(root))


def test_a_set_for_detection_is_called_so(tmp_path: Path) -> None:
    root = drawn(tmp_path, "train/images/1.png", "val/images/2.png")
    (root / "train" / "labels").mkdir()
    with pytest.raises(Refused, match="train holds images/ and labels/, as sets for detection do"):
        load_samples(str(root))


def test_digits_are_classes_and_dates_are_not(tmp_path: Path) -> None:
    digits = drawn(tmp_path / "digits", *(f"mnist/{i}/{j}.png" for i in range(3) for j in range(2)))
    assert load_samples(str(digits), val_fraction=0.5).classes == ("0", "1", "2")
    signs = drawn(tmp_path / "signs", *(f"signs/{i:05}/{j}.png" for i in range(3) for j in range(2)))
    assert load_samples(str(signs), val_fraction=0.5).classes == ("00000", "00001", "00002")
    dated = ("2023-05-01", "2023", "2024_06", "20240601")
    days = drawn(tmp_path / "days", *(f"{c}/{day}/1.png" for c in ("cat", "dog") for day in dated))
    assert load_samples(str(days), val_fraction=0.5).classes == ("cat", "dog")
