import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finetune.data.files import contents
from finetune.data.samples import DataSet, Samples, load_samples
from finetune.errors import Refused

TWO_CLASSES = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")


def plant(root: Path, *files: str) -> Path:
    """Write files, each holding its own name; samples.py looks at no pixel."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def named(data: DataSet, split: str) -> list[tuple[str, str]]:
    """The class's name and the file's, of each image of a split."""
    samples = data.splits[split]
    return [(data.classes[label], path.name) for path, label in zip(samples.paths, samples.labels, strict=True)]


def every_path(data: DataSet) -> list[Path]:
    return [path for samples in data.splits.values() for path in samples.paths]


def test_class_folders_alone_are_split_into_train_and_val(tmp_path: Path) -> None:
    files = [f"{label}/{i}.png" for label in ("zebra", "cat") for i in range(10)]
    data = load_samples(str(plant(tmp_path, *files)), val_fraction=0.3)
    assert data.classes == ("cat", "zebra")
    assert list(data.splits) == ["train", "val"]
    assert Counter(data.splits["val"].labels) == {0: 3, 1: 3}
    assert Counter(data.splits["train"].labels) == {0: 7, 1: 7}
    assert sorted(every_path(data)) == sorted(tmp_path / file for file in files)
    for split in data.splits.values():
        assert [data.classes[label] for label in split.labels] == [path.parent.name for path in split.paths]
    assert data.warnings == ()


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
@pytest.mark.parametrize("train", ["train", "training"])
def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path, train: str, val: str) -> None:
    plant(tmp_path, f"{train}/b/1.png", f"{train}/a/2.png", f"{val}/a/3.png", f"{val}/b/4.png", "test/b/5.png")
    plant(tmp_path, "test/a/6.png")
    data = load_samples(str(tmp_path))
    assert data.classes == ("a", "b")
    assert list(data.splits) == ["train", "val", "test"]
    assert named(data, "train") == [("a", "2.png"), ("b", "1.png")]
    assert named(data, "val") == [("a", "3.png"), ("b", "4.png")]
    assert named(data, "test") == [("a", "6.png"), ("b", "5.png")]


def test_a_train_folder_without_val_is_split_and_test_is_left_alone(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{split}/{file}" for split in ("train", "test") for file in TWO_CLASSES))
    data = load_samples(str(tmp_path), val_fraction=0.5)
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 2, "val": 2, "test": 4}
    assert {path.relative_to(tmp_path).parts[0] for path in data.splits["val"].paths} == {"train"}
    assert {path.relative_to(tmp_path).parts[0] for path in data.splits["test"].paths} == {"test"}


def test_val_as_test_leaves_val_to_be_split_off_train(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{split}/{file}" for split in ("train", "val") for file in TWO_CLASSES))
    data = load_samples(str(tmp_path), val_fraction=0.5, use_val_as="test")
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 2, "val": 2, "test": 4}
    assert {path.relative_to(tmp_path).parts[0] for path in data.splits["test"].paths} == {"val"}
    assert {path.relative_to(tmp_path).parts[0] for path in data.splits["val"].paths} == {"train"}


def test_each_image_validates_in_one_fold_and_trains_in_the_others(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{label}/{i}.png" for label, count in (("cat", 11), ("dog", 7)) for i in range(count)))
    folds = [load_samples(str(tmp_path), folds=5, fold=fold) for fold in range(5)]
    validated = [path for data in folds for path in data.splits["val"].paths]
    assert sorted(validated) == sorted(tmp_path.glob("*/*.png"))
    for data in folds:
        assert sorted(every_path(data)) == sorted(validated)
        assert data.folded is not None
        assert sorted(data.folded.paths) == sorted(validated)
    assert len({data.split_digest for data in folds}) == 5
    assert load_samples(str(tmp_path), folds=5, fold=2, split_seed=1).split_digest != folds[2].split_digest


def test_folds_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    root = str(plant(tmp_path / "flat", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "dog/3.png"))
    with pytest.raises(Refused, match=r"class cat has 2 images for data\.folds=3; set data\.folds=2 or less"):
        load_samples(root, folds=3)
    with pytest.raises(Refused, match=r"data\.fold=2: with data\.folds=2 the last one is 1"):
        load_samples(root, folds=2, fold=2)
    split = str(plant(tmp_path / "split", *(f"{name}/{file}" for name in ("train", "val") for file in TWO_CLASSES)))
    with pytest.raises(Refused, match=r"has validation images, so data.folds=2 would split nothing.* data.use_val_as"):
        load_samples(split, folds=2)
    assert len(load_samples(split, folds=2, use_val_as="test").splits["test"]) == 4


def test_labels_always_count_in_the_training_classes(tmp_path: Path) -> None:
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/b/1.png")
    data = load_samples(str(tmp_path))
    assert data.classes == ("a", "b", "c")
    assert data.splits["val"].labels == (1, 2)


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    plant(tmp_path, "cat/2020/1.png", "cat/2021/1.png", "cat/1.png", "dog/1.JPG", "dog/deep/er/1.jpeg", "dog/2.webp")
    data = load_samples(str(tmp_path), val_fraction=0.5)
    assert len(set(every_path(data))) == 6  # one basename four times is four images
    assert Counter(data.splits["train"].labels) + Counter(data.splits["val"].labels) == {0: 3, 1: 3}


ODD_NAMES = [
    "été.png",
    "猫 🐈.png",
    "two words.png",
    " blank first.png",
    "line\nbreak.png",
    "tab\t%s{}.png",
    "a,b;'\".png",
]


@pytest.mark.parametrize("name", [*ODD_NAMES, os.fsdecode(b"not utf-8 \xff\xfe.png")])
def test_odd_file_names_work(tmp_path: Path, name: str) -> None:
    folder = f"class of {name}"
    plant(tmp_path, f"{folder}/{name}", f"{folder}/2.png", "other/1.png", "other/2.png")
    data = load_samples(str(tmp_path), val_fraction=0.5)
    path = tmp_path / folder / name
    assert path in every_path(data)
    assert folder in data.classes
    assert (
        contents([path], tmp_path / "cache")[path].digest == hashlib.sha256(os.fsencode(f"{folder}/{name}")).hexdigest()
    )
    assert len(data.split_digest) == 12


REFUSED_FOLDERS = {
    "train only in files": (["1.png", "2.png"], r"holds no class folders; put the images of each class in a folder"),
    "nothing": ([], r"holds no class folders"),
    "a class without images": ([*TWO_CLASSES, "empty/readme.txt"], r"/empty holds no images; add some or remove"),
    "a class with hidden files only": ([*TWO_CLASSES, "empty/.1.png"], r"/empty holds no images"),
    "one class": (["cat/1.png", "cat/2.png"], r"found 1 class \(cat\) to train on; at least two are needed"),
    "a class only in val": (
        [*(f"train/{f}" for f in TWO_CLASSES), "val/cat/1.png", "val/emu/1.png"],
        r"val has class 'emu', which training lacks; remove it or add images to train",
    ),
    "a class only in test": (
        [*(f"train/{f}" for f in TWO_CLASSES), "val/cat/1.png", "val/dog/1.png", "test/emu/1.png"],
        r"test has class 'emu', which training lacks",
    ),
    "a folder named like an image": (
        [*TWO_CLASSES, "cat/x.jpg/1.png"],
        r"cat/x\.jpg is a folder with the name of an im",
    ),
    "one image to split": (
        [*TWO_CLASSES, "emu/1.png"],
        r"class emu has one image, which cannot be split .* give a val/",
    ),
}


@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_refused_folders(tmp_path: Path, case: str) -> None:
    files, text = REFUSED_FOLDERS[case]
    with pytest.raises(Refused, match=text):
        load_samples(str(plant(tmp_path, *files)))


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"data\.root is not set; give data\.root=FOLDER of class folders"):
        load_samples(None)
    with pytest.raises(Refused, match=r"nowhere is not a folder; give a folder that holds one folder of images per"):
        load_samples(str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"file is not a folder"):
        load_samples(str(tmp_path / "file"))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, *TWO_CLASSES)
    scandir = os.scandir

    def closed(folder: Path) -> object:
        if Path(folder).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(Refused, match=r"dog cannot be listed \(Permission denied\); check its permissions"):
        load_samples(str(tmp_path))


def test_val_as_test_without_val_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"data\.use_val_as=test, but there is no val/ folder or split; leave the key"):
        load_samples(str(plant(tmp_path, *TWO_CLASSES)), use_val_as="test")


def test_a_class_that_val_or_test_lacks_is_warned_of(tmp_path: Path) -> None:
    plant(tmp_path, *(f"train/{file}" for file in TWO_CLASSES), "train/emu/1.png", "val/dog/1.png", "test/cat/1.png")
    plant(tmp_path, "test/dog/1.png")
    data = load_samples(str(tmp_path))
    assert sorted(data.warnings) == [
        f"{tmp_path}: test has no image of emu",
        f"{tmp_path}: val has no image of cat, emu",
    ]


def test_files_that_are_no_images_are_ignored_with_one_warning(tmp_path: Path) -> None:
    plant(tmp_path, *TWO_CLASSES, ".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/.ipynb_checkpoints/1.png")
    plant(tmp_path, ".ipynb_checkpoints/cat/1.png", "dog/notes.txt")
    data = load_samples(str(tmp_path), val_fraction=0.5)
    assert data.classes == ("cat", "dog")
    assert sorted(every_path(data)) == sorted(tmp_path / file for file in TWO_CLASSES)
    [warning] = data.warnings
    names = ".DS_Store, .ipynb_checkpoints, Thumbs.db, notes.txt"
    assert warning == f"{tmp_path}: ignored 6 files that are no images ({names})"


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> str:
    path = folder / "images.csv"
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_a_csv_names_images_labels_and_splits(tmp_path: Path) -> None:
    plant(tmp_path, *TWO_CLASSES, "any/x,y.png", "any/ünï.png")
    rows = 'dog/1.png, Hündchen ,train\n"any/x,y.png",katze,train\nany/ünï.png,katze,val\ncat/1.png,Hündchen,test\n'
    data = load_samples(None, write_csv(tmp_path, f"path,label,split\n{rows}", "utf-8-sig"))
    assert data.classes == ("Hündchen", "katze")
    assert list(data.splits) == ["train", "val", "test"]
    assert named(data, "train") == [("katze", "x,y.png"), ("Hündchen", "1.png")]
    assert named(data, "val") == [("katze", "ünï.png")]
    assert named(data, "test") == [("Hündchen", "1.png")]
    assert [path.parent for path in data.splits["test"].paths] == [tmp_path / "cat"]


def test_a_csv_without_splits_is_split_as_its_folders_would_be(tmp_path: Path) -> None:
    files = [f"{label}/{i}.png" for label in ("a", "b") for i in range(9)]
    root = plant(tmp_path / "root", *files)
    shuffled = np.random.default_rng(0).permutation(files)
    table = write_csv(tmp_path, "label,path,split,camera\n" + "".join(f"{f[0]},{f},,x\n\n" for f in shuffled))
    by_csv = load_samples(str(root), table, val_fraction=0.3, split_seed=5)
    by_folder = load_samples(str(root), val_fraction=0.3, split_seed=5)
    assert by_csv == by_folder
    assert load_samples(str(root), table, val_fraction=0.3, split_seed=6) != by_folder


def test_val_of_a_csv_can_be_the_test_set(tmp_path: Path) -> None:
    plant(tmp_path, *TWO_CLASSES, "new.png")
    rows = "".join(f"{file},{file[:3]},\n" for file in TWO_CLASSES)
    table = write_csv(tmp_path, f"path,label,split\n{rows}new.png,cat,val\n")
    data = load_samples(None, table, val_fraction=0.5, use_val_as="test")
    assert named(data, "test") == [("cat", "new.png")]
    assert data.warnings == (f"{table}: test has no image of dog",)
    assert len(data.splits["val"]) == len(data.splits["train"]) == 2


REFUSED_TABLES = {
    "empty": ("", r"the first line must name the columns: path,label or path,label,split"),
    "no header": ("cat/1.png,cat\n", r"the first line must name the columns"),
    "no label column": ("path,animal\ncat/1.png,cat\n", r"the first line must name the columns"),
    "an unknown split": (
        "path,label,split\ncat/1.png,cat,fold1\n",
        r"csv:2: split 'fold1' is not known; use train, val, t",
    ),
    "no label": ("path,label\ncat/1.png,cat\ndog/1.png,\n", r"csv:3: path or label is empty; fill it in or remove"),
    "a blank label": ("path,label\ncat/1.png,cat\ndog/1.png,  \n", r"csv:3: path or label is empty"),
    "a missing label": ("path,label\ncat/1.png,cat\ndog/1.png\n", r"csv:3: path or label is empty"),
    "no path": ("path,label\n,cat\n", r"csv:2: path or label is empty"),
    "files that are not there": (
        "path,label\ncat/1.png,cat\ncat/8.png,cat\ndog/9.png,dog\n",
        r"names 2 files that do not exist, first .*cat/8\.png; correct it",
    ),
    "a folder as an image": ("path,label\ncat,cat\n", r"names 1 file that does not exist, first .*/cat;"),
    "one class": ("path,label\ncat/1.png,cat\ncat/2.png,cat\n", r"found 1 class \(cat\) to train on; at least two"),
    "no training images": ("path,label,split\ncat/1.png,cat,val\n", r"found 0 class to train on; at least two"),
    "only a header": ("path,label\n", r"found 0 class to train on"),
    "a class only in val": (
        "path,label,split\ncat/1.png,cat,\ndog/1.png,dog,\ndog/2.png,emu,val\n",
        r"val has class 'emu', which training lacks",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TABLES)
def test_refused_tables(tmp_path: Path, case: str) -> None:
    text, reason = REFUSED_TABLES[case]
    plant(tmp_path, *TWO_CLASSES)
    with pytest.raises(Refused, match=reason):
        load_samples(None, write_csv(tmp_path, text))


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"data\.csv=.*none\.csv cannot be read: .*No such file.*; give a UTF-8 CSV file"):
        load_samples(None, str(tmp_path / "none.csv"))
    table = write_csv(tmp_path, "path,label\ncafé.png,café\n", "latin-1")
    with pytest.raises(Refused, match=r"images\.csv cannot be read: .*utf-8.*; give a UTF-8 CSV file"):
        load_samples(None, table)


def test_a_split_knows_no_names(tmp_path: Path) -> None:
    one = plant(tmp_path / "one", *(f"{label}/{i}.png" for label in ("a", "b") for i in range(10)))
    two = plant(tmp_path / "two", *(f"{label}/img_{i}.jpg" for label in ("x", "y") for i in range(10, 20)))
    positions = []
    for root in (one, two):
        data = load_samples(str(root), val_fraction=0.3, split_seed=4)
        order = sorted(every_path(data))
        positions.append([order.index(path) for path in data.splits["val"].paths])
    assert positions[0] == positions[1]


def test_train_and_val_share_nothing_and_lose_nothing(tmp_path: Path) -> None:
    root = plant(tmp_path, *(f"{label}/{i}.png" for label in ("a", "b", "c") for i in range(7)))
    for seed in range(3):
        data = load_samples(str(root), val_fraction=0.4, split_seed=seed)
        train, val = set(data.splits["train"].paths), set(data.splits["val"].paths)
        assert not train & val
        assert len(train | val) == 21


def test_the_split_digest_names_the_split_and_not_the_place(tmp_path: Path) -> None:
    files = [f"{label}/{i}.png" for label in ("a", "b") for i in range(10)]
    here, there = plant(tmp_path / "here", *files), plant(tmp_path / "there", *files)
    digest = load_samples(str(here)).split_digest
    assert load_samples(str(there)).split_digest == digest
    assert load_samples(str(here), split_seed=1).split_digest != digest
    assert load_samples(str(here), val_fraction=0.5).split_digest != digest
    (there / "a").rename(there / "c")
    assert load_samples(str(there)).split_digest != digest


def test_contents_are_named_by_their_bytes_in_order(tmp_path: Path) -> None:
    plant(tmp_path, "b", "a", "c/a")
    paths = [tmp_path / "b", tmp_path / "a", tmp_path / "c/a"]
    assert [content.digest for content in contents(paths, tmp_path / "cache").values()] == [
        hashlib.sha256(text).hexdigest() for text in (b"b", b"a", b"c/a")
    ]
    stat = paths[0].stat()
    paths[0].write_bytes(b"x")
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert contents(paths, tmp_path / "cache")[paths[0]].digest == hashlib.sha256(b"x").hexdigest()


def test_samples_without_some_keep_their_labels() -> None:
    paths = tuple(Path(f"{i}.png") for i in range(5))
    samples = Samples(paths, (3, 1, 4, 1, 5))
    assert samples.without(frozenset({paths[0], paths[3]})) == Samples((paths[1], paths[2], paths[4]), (1, 4, 5))
    assert samples.pick([4, 0]) == Samples((paths[4], paths[0]), (5, 3))
    assert len(samples) == 5
