"""Tables of images, as people have them."""

import csv
import unicodedata
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from finetune.commands.inspect import check
from finetune.compose import compose_config
from finetune.data.samples import DataSet, load_samples
from finetune.data.source import find_labelled
from finetune.data.table import from_csv
from finetune.errors import Refused
from tests.data.test_folders import drawn
from tests.data.test_samples import TWO_CLASSES, every_path, named

LABELS = {name: name.partition("/")[0] for name in TWO_CLASSES}


def table(root: Path, header: str, *rows: str, name: str = "images.csv", encoding: str = "utf-8") -> Path:
    (root / name).write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return root / name


def in_two_parts(data: DataSet) -> set[tuple[str, str]]:
    """Paths and class names, whatever the split."""
    return {
        (str(path), data.classes[label])
        for samples in data.splits.values()
        for path, label in zip(samples.paths, samples.labels, strict=True)
    }


def as_folder(root: Path) -> set[tuple[str, str]]:
    theirs = ImageFolder(root)
    return {(path, theirs.classes[label]) for path, label in theirs.samples}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_cells_may_be_parted_by_other_signs(tmp_path: Path, delimiter: str, encoding: str, ending: str) -> None:
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    rows = [["path", "label"], *([name, label] for name, label in LABELS.items())]
    text = ending.join(delimiter.join(row) for row in rows)
    (root / "images.csv").write_bytes(text.encode(encoding))
    data = load_samples(None, str(root / "images.csv"), val_fraction=0.5)
    assert in_two_parts(data) == as_folder(root)
    assert data.warnings == ()


def test_what_excel_writes_is_read(tmp_path: Path) -> None:
    root = drawn(tmp_path / "root", *TWO_CLASSES, "cat/a, b.png")
    with (root / "x.csv").open("w", newline="") as file:
        file.write("sep=;\r\n")
        writer = csv.writer(file, delimiter=";")
        writer.writerows([["Path", "Label"], *LABELS.items(), ["cat/a, b.png", "cat"], ["", ""]])
    assert in_two_parts(load_samples(None, str(root / "x.csv"), val_fraction=0.5)) == as_folder(root)


HEADERS = [
    "image,label",
    "filename,class",
    "file_name,category",
    "File Name,Target",
    "file,label",
    "id,category",
    "IMAGE,CLASS",
    "image_id,class_name",
    "filepath,labels,class",
    "Image-Path,LABEL",
]


@pytest.mark.parametrize("header", HEADERS)
def test_columns_are_known_by_their_usual_names(tmp_path: Path, header: str) -> None:
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    names = header.split(",")
    rows = [",".join([name, *(["x"] if len(names) == 3 else []), label]) for name, label in LABELS.items()]
    data = load_samples(None, str(table(root, header, *rows)), val_fraction=0.5)
    assert in_two_parts(data) == as_folder(root)
    unused = "; not used: labels" if len(names) == 3 else ""
    assert data.warnings == (f"{root}/images.csv: the columns are path {names[0]}, label {names[-1]}{unused}",)


def test_the_best_of_several_names_counts_and_the_others_are_named(tmp_path: Path) -> None:
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    rows = [f"{i},{name},7,{label},1024" for i, (name, label) in enumerate(LABELS.items())]
    data = load_samples(None, str(table(root, "id,filename,target,class,width", *rows)), val_fraction=0.5)
    assert in_two_parts(data) == as_folder(root)
    assert data.warnings == (
        f"{root}/images.csv: the columns are path filename, label class; not used: id, target, width",
    )


def test_columns_of_any_name_can_be_set(tmp_path: Path) -> None:
    root = drawn(tmp_path / "root", *TWO_CLASSES)
    rows = [f"{name};{label};{'TRAIN' if i % 2 else 'dev'}" for i, (name, label) in enumerate(LABELS.items())]
    file = table(root, "Bild;Art;Teil", *rows)
    data = load_samples(None, str(file), columns="path:Bild,label:Art,split:Teil")
    assert in_two_parts(data) == as_folder(root)
    assert {split: len(samples) for split, samples in data.splits.items()} == {"train": 2, "val": 2}
    config = compose_config([f"data.csv={file}", "data.csv_columns=path:Bild,label:Art"])
    assert config.data.csv_columns == "path:Bild,label:Art"


REFUSED = {
    "no known names": (
        None,
        r"images\.csv: the first line must name the columns: path,label or path,label,split; it has a, b; "
        r"set data\.csv_columns=path:COLUMN,label:COLUMN",
    ),
    "a name that is not there": ("path:a,label:c", r"has no column 'c'; it has a, b"),
    "no label": ("path:a", r"must name path and label; .* has a, b"),
    "nothing": ("path", r"'path' is not path:NAME, label:NAME or split:NAME"),
    "another word": ("file:a,label:b", r"'file:a' is not path:NAME, label:NAME or split:NAME"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_columns_that_are_not_there_are_refused_with_what_is(tmp_path: Path, case: str) -> None:
    columns, text = REFUSED[case]
    with pytest.raises(Refused, match=text):
        from_csv(table(tmp_path, "a,b", "cat/1.png,cat"), None, columns)


def test_metadata_of_which_one_column_is_known_says_which(tmp_path: Path) -> None:
    file = table(tmp_path, "lesion_id,image_id,dx,dx_type,age,sex,localization", "HAM_1,ISIC_1,bkl,histo,80,male,scalp")
    with pytest.raises(
        Refused, match=r"it has lesion_id, image_id, dx, .*; set data\.csv_columns=path:image_id,label:COL"
    ):
        from_csv(file, None)


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (("train", "Training", "TRAIN", ""), "train"),
        (("val", "valid", "Validation", "dev", "eval"), "val"),
        (("test", "Testing", "TEST"), "test"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path: Path, words: tuple[str, ...], split: str) -> None:
    files = [f"{label}/{i}.png" for i in range(len(words)) for label in ("cat", "dog")]
    root = drawn(tmp_path, *files)
    rows = [f"{name},{name[:3]},{words[i // 2]}" for i, name in enumerate(files)]
    images = from_csv(table(root, "path,label,subset", *rows), None).images
    assert list(images) == [split]
    assert len(images[split]) == len(files)


def test_paths_may_be_spelt_in_other_ways(tmp_path: Path) -> None:
    accented = unicodedata.normalize("NFD", "cat/été.png")
    root = drawn(tmp_path, *TWO_CLASSES, accented, "dog/scan.JPG", "dog/a\\b.png")
    rows = [
        "cat\\1.png,cat",
        f"{unicodedata.normalize('NFC', accented)},cat",
        "dog/1,dog",
        "dog/scan,dog",
        "dog/a\\b.png,dog",
    ]
    listed = from_csv(table(root, "path,label", *rows), None)
    images, notes = listed.images, listed.notes
    names = ["cat/1.png", accented, "dog/1.png", "dog/scan.JPG", "dog/a\\b.png"]
    assert [path for path, _ in images["train"]] == [root / name for name in names]
    assert notes == []


def test_a_name_alone_is_looked_for_in_the_folders_below(tmp_path: Path) -> None:
    root = drawn(tmp_path, "part_1/ISIC_1.jpg", "part_2/ISIC_2.jpg", "part_2/ISIC_3.jpg", "__MACOSX/part_1/ISIC_1.jpg")
    listed = from_csv(table(root, "path,label", "ISIC_1,a", "ISIC_2.jpg,b", "ISIC_3,b"), None)
    images, notes = listed.images, listed.notes
    assert [path.name for path, _ in images["train"]] == ["ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg"]
    assert notes == [f"{root}/images.csv: 3 images were found by their names in the folders below {root}"]
    drawn(root, "part_3/ISIC_2.jpg")
    with pytest.raises(Refused, match=r"names 1 file that does not exist, first .*ISIC_2\.jpg; correct it"):
        from_csv(root / "images.csv", None)


@pytest.mark.parametrize(
    "prefix", ["/data/upload/1/", "/content/drive/MyDrive/set/", "C:\\\\set\\\\", r"\\server\\x\\"]
)
def test_paths_of_another_computer_are_found_by_their_names(tmp_path: Path, prefix: str) -> None:
    root = drawn(tmp_path, "images/a-1.png", "images/b-2.png")
    listed = from_csv(table(root, "image,class", f"{prefix}a-1.png,cat", f"{prefix}b-2.png,dog"), None)
    images, notes = listed.images, listed.notes
    assert images == {"train": [(root / "images" / "a-1.png", "cat"), (root / "images" / "b-2.png", "dog")]}
    assert f"2 images were found by their names in the folders below {root}" in notes[1]


ELSEWHERE = {
    r"C:\Users\me\cat\1.png": "of another computer; give paths relative to the table, or to data.root",
    r"\\server\share\1.png": "of another computer",
    "https://example.org/1.png": "a web address; download the images",
}


@pytest.mark.parametrize("path", ELSEWHERE)
def test_paths_of_other_places_are_called_so(tmp_path: Path, path: str) -> None:
    with pytest.raises(Refused) as refused:
        from_csv(table(tmp_path, "path,label", f"{path},cat"), None)
    assert f"names 1 file that does not exist, first {path} ({ELSEWHERE[path]}" in str(refused.value)


def test_a_name_that_is_too_long_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="names 1 file that does not exist"):
        from_csv(table(tmp_path, "path,label", f"{'x' * 5000},cat"), None)


def test_a_line_that_is_there_twice_is_one_image(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES)
    rows = [f"{name},{label}" for name, label in LABELS.items()]
    data = load_samples(None, str(table(root, "path,label", *rows, rows[0], rows[0], rows[2])), val_fraction=0.5)
    assert sorted(every_path(data)) == sorted(root / name for name in TWO_CLASSES)
    assert data.warnings == (f"{root}/images.csv: 3 lines are there twice, and counts once",)


def test_labels_that_look_alike_are_one_class(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES)
    forms = [unicodedata.normalize(form, "été") for form in ("NFC", "NFD")]
    rows = [f"cat/1.png,{forms[0]}", f"cat/2.png,{forms[1]}", "dog/1.png,dog", "dog/2.png,dog"]
    assert load_samples(None, str(table(root, "path,label", *rows)), val_fraction=0.5).classes == ("dog", forms[0])


def test_a_model_can_be_measured_on_a_table(tmp_path: Path) -> None:
    root = drawn(tmp_path, *TWO_CLASSES)
    rows = [f"{name}\t{label}" for name, label in LABELS.items()]
    file = table(root, "file\tclass", *rows, name="images.tsv")
    name, labelled, _ = find_labelled(file)
    assert name is None
    assert labelled == [(root / name, label) for name, label in sorted(LABELS.items())]
    rows = [f"{name},{label},{'dev' if i % 2 else 'train'}" for i, (name, label) in enumerate(LABELS.items())]
    file = table(root, "path,label,split", *rows)
    assert find_labelled(file)[0] == "val"
    assert len(find_labelled(file, "train")[1]) == 2
    with pytest.raises(Refused, match=r"has no image of test; it has train, val"):
        find_labelled(file, "test")


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "X.CSV", "list.txt"])
def test_check_takes_a_table(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = drawn(tmp_path, *TWO_CLASSES)
    file = table(root, "path,label", *(f"{name},{label}" for name, label in LABELS.items()), name=name)
    assert check(str(file), ["data.val_fraction=0.5"]) == 0
    assert "ready to train: finetune sweep explore.yaml data.csv=" in capfd.readouterr().out


def test_a_table_given_as_a_folder_says_where_it_belongs(tmp_path: Path) -> None:
    file = table(tmp_path, "path,label")
    with pytest.raises(Refused, match=r"is not a folder but a file; .* is given as data\.csv=.*images\.csv"):
        load_samples(str(file))


def test_a_csv_names_what_a_folder_holds(tmp_path: Path) -> None:
    root = drawn(tmp_path, *(f"{split}/{name}" for split in ("train", "val") for name in TWO_CLASSES))
    rows = [f"{split}/{name},{label},{split}" for split in ("train", "val") for name, label in LABELS.items()]
    by_table, by_folder = load_samples(None, str(table(root, "path,label,split", *rows))), load_samples(str(root))
    assert by_table.splits == by_folder.splits
    assert named(by_table, "val") == named(by_folder, "val")
