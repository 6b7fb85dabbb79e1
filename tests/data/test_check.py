"""finetune check tells what is in a folder, and agrees with training about what is refused."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import train
from finetune.errors import Refused
from tests.models import finetune


def check(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = finetune(monkeypatch, "check", *words)
    shown = capfd.readouterr()
    return code, shown.out + shown.err


def test_a_sound_folder_is_ready(
    images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = check(monkeypatch, capfd, images, "data.size=32")
    assert code == 0
    assert re.findall(r"^ *class(\d) +8 +4 *$", said, re.M) == ["0", "1", "2"]
    assert re.search(r"^ *all +24 +12 *$", said, re.M)
    assert "width in pixels:  40 to 40, median 40" in said
    assert "kinds of pixels:  36 RGB" in said
    assert "caveat: fewer than 10 training images of class0, class1, class2" in said
    assert "caveat: 12 validation images: one of them is 8.3% of accuracy" in said
    assert said.count("caveat:") == 2
    assert f"ready to train: finetune sweep explore.yaml data.root={images}" in said


def test_every_caveat_is_told_with_an_example(
    images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train_, val = images / "train", images / "val"
    shutil.copy(train_ / "class0" / "0.png", val / "class0" / "same.png")  # leaks
    shutil.copy(train_ / "class1" / "0.png", train_ / "class2" / "other.png")  # two labels
    shutil.copy(train_ / "class2" / "1.png", train_ / "class2" / "copy.png")
    Image.open(train_ / "class0" / "1.png").save(train_ / "class0" / "not.jpg", format="PNG")
    Image.new("CMYK", (50, 60)).save(train_ / "class1" / "print.jpg")
    for i in range(25):
        Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(train_ / "class0" / f"n{i}.bmp")
    (train_ / "class0" / "notes.txt").write_text("x")
    code, said = check(monkeypatch, capfd, images)
    assert code == 0
    for told in (
        r"caveat: .*ignored 1 file that is no image \(notes.txt\)",
        r"caveat: 1 image lies in several splits, so validation is too kind: .*class0/0.png = .*class0/same.png",
        r"caveat: 1 image has two labels: .*class1/0.png = .*class2/other.png",
        r"caveat: 3 more files are copies of others: .*1.png = .*not.jpg; .*0.png = .*other.png; .*1.png = .*copy.png",
        r"caveat: 1 file is not what its name says \(read anyway\): .*not.jpg is PNG",
        r"caveat: classes differ in size: class0 has 34 training images, class1 9; always saying the largest",
        r"caveat: \d+ images are smaller than data.size=224 and enlarged",
        r"kinds of pixels: .*1 CMYK",
        r"ready to train: finetune sweep explore.yaml data.root=\S+ trainer.metric=val/balanced_acc\n",
    ):
        assert re.search(told, said), (told, said)

    chosen = check(monkeypatch, capfd, images, "trainer.metric=val/f1")[1]
    assert chosen.endswith(" trainer.metric=val/f1\n")


def test_a_file_twice_in_training_and_once_in_validation_is_told_whole(
    images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = images / "train" / "class0" / "0.png"
    places = [first, first.with_name("again.png"), images / "val" / "class0" / "same.png"]
    for place in places[1:]:
        shutil.copy(first, place)
    code, said = check(monkeypatch, capfd, images)
    assert code == 0
    same = " = ".join(map(str, places))
    assert f"caveat: 1 image lies in several splits, so validation is too kind: {same}\n" in said
    assert f"caveat: 1 more file is a copy of others: {same}\n" in said


def test_a_table_that_names_a_file_twice_is_seen_through(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = sorted((images / "train").rglob("*.png"))
    lines = [f"{file},{file.parent.name},{'val' if i % 4 == 0 else 'train'}" for i, file in enumerate(files)]
    twice = f"{files[1]},{files[1].parent.name},val"
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,split", *lines, twice]))
    code, said = check(monkeypatch, capfd, table, "data.on_leak=refuse")
    assert code == 2
    assert f"training would be refused: 1 image lies in several splits, so validation is too kind: {files[1]}" in said
    assert "more file" not in said
    other = next(file.parent.name for file in files if file.parent != files[1].parent)
    table.write_text("\n".join(["path,label,split", *lines, f"{files[1]},{other},train"]))
    assert f"caveat: 1 image has two labels: {files[1]}" in check(monkeypatch, capfd, table)[1]


FAULTS = {
    "sound": lambda root: None,
    "truncated": lambda root: _cut(root / "train" / "class0" / "0.png"),
    "empty file": lambda root: (root / "val" / "class1" / "0.png").write_bytes(b""),
    "text": lambda root: (root / "train" / "class2" / "x.jpg").write_text("hello"),
    "unknown class in val": lambda root: shutil.copytree(root / "val" / "class0", root / "val" / "classX"),
    "empty class": lambda root: (root / "train" / "class9").mkdir(),
    "all of val": lambda root: [p.write_text("x") for p in (root / "val").rglob("*.png")],
    "a loop": lambda root: (root / "train" / "class0" / "loop").symlink_to(root / "train" / "class0"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("on_bad", ["skip", pytest.param("refuse", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_its_exit_code_says_whether_training_would_be_refused(
    fault: str, on_bad: str, images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    FAULTS[fault](images)
    words = [f"data.root={images}", "data.size=32", f"data.on_bad={on_bad}", "model=narrow_resnet50"]
    try:
        train.prepare([(words, 1)], False, lambda what, done, total: None)
        refused = False
    except Refused:
        refused = True
    code, said = check(monkeypatch, capfd, images, *words[1:3])
    assert code == (2 if refused else 0), said
    assert refused == (
        fault not in ("sound",) and (on_bad == "refuse" or fault not in ("truncated", "empty file", "text"))
    )


def test_the_page_shows_images_of_each_class_and_what_is_wrong(
    images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(images / "train" / "class0" / "0.png", images / "val" / "class1" / "<same>.png")
    (images / "val" / "class2" / "broken.png").write_bytes(b"no image")
    code, said = check(monkeypatch, capfd, images, "--html", str(tmp_path / "look.html"))
    assert code == 2
    assert f"page: {tmp_path / 'look.html'}" in said

    page = (tmp_path / "look.html").read_text()
    assert page.count("<img ") == 3 * 8 + 1  # of each class six to train on and two to validate; and the copy
    assert 'class2 <span class="quiet">8 train, 5 val' in page
    assert "training would be refused: 1 unreadable image" in page
    assert "&lt;same&gt;.png" in page
    assert "<same>" not in page
    for picture in re.findall(r"base64,([^\"]+)", page):
        shown = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert shown.size == (40, 32)


def test_a_page_that_cannot_be_written_is_refused_before_images_are_read(
    images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert finetune(monkeypatch, "check", str(images), "--html", "/proc/look.html") == 2
    said = capfd.readouterr()
    assert "refused: --html /proc/look.html" in said.err
    assert said.out == ""
