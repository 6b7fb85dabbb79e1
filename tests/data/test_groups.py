from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finetune.compose import compose_config
from finetune.config import Config, flat, key_of
from finetune.data.check import inspect_images
from finetune.data.groups import choose_groups, group_leakage, groups_in_names
from finetune.data.samples import load_samples
from finetune.data.source import find_samples
from finetune.errors import Refused
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from tests.data.test_samples import plant

CLASSES = ("ant", "bee", "cat")


def patients(count: int, seed: int) -> tuple[list[int], list[str]]:
    """Labels and groups of a few hundred images: groups of 1 to 30, most of them of one class."""
    rng = np.random.default_rng(seed)
    labels: list[int] = []
    groups: list[str] = []
    for i in range(count):
        size = int(rng.integers(1, 31))
        own = int(rng.integers(3))
        labels += [own if rng.random() < 0.9 else int(rng.integers(3)) for _ in range(size)]
        groups += [f"p{i}"] * size
    return labels, groups


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_groups_are_whole_and_each_class_gets_about_its_share(fraction: float) -> None:
    labels, groups = patients(60, seed=1)
    chosen = choose_groups(labels, groups, fraction, 0, CLASSES, "photos")
    assert chosen == sorted(set(chosen))
    inside = {groups[i] for i in chosen}
    assert inside.isdisjoint(groups[i] for i in set(range(len(labels))) - set(chosen))

    totals, taken = Counter(labels), Counter(labels[i] for i in chosen)
    for label in range(3):
        assert taken[label] / totals[label] == pytest.approx(fraction, abs=0.08)


def test_the_seed_decides_and_nothing_else_does() -> None:
    labels, groups = patients(60, seed=2)
    choices = [choose_groups(labels, groups, 0.2, seed, CLASSES, "photos") for seed in (0, 0, 1)]
    assert choices[0] == choices[1] != choices[2]


def test_a_class_of_two_large_groups_is_on_both_sides() -> None:
    labels = [0] * 20 + [1] * 20
    groups = ["a"] * 10 + ["b"] * 10 + [str(i) for i in range(20)]
    chosen = choose_groups(labels, groups, 0.2, 0, CLASSES[:2], "photos")
    assert Counter(labels[i] for i in chosen)[0] == 10


def test_what_no_choice_of_groups_can_split_is_refused() -> None:
    with pytest.raises(Refused, match=r"photos: all images of class ant are of one group, a \(data.groups\)"):
        choose_groups([0, 0, 1, 1], ["a", "a", "b", "c"], 0.5, 0, CLASSES[:2], "photos")
    with pytest.raises(Refused, match=r"no choice of whole groups .* leaves images of class (ant|bee|cat) both"):
        # any two of the groups hold all that there is of one class
        choose_groups([0, 2, 0, 1, 1, 2], ["x", "x", "y", "y", "z", "z"], 0.3, 0, CLASSES, "photos")


def test_names_say_which_images_belong_together() -> None:
    paths = [Path("s1/ant/p1_a.jpg"), Path("s2/ant/p1_b.jpg")]
    assert set(groups_in_names(paths, r"^(p\d+)_").values()) == {"p1"}
    assert list(groups_in_names(paths, r"^p\d_.").values()) == ["p1_a", "p1_b"]
    assert list(groups_in_names(paths, r"(s\d)/.*(p\d)").values()) == ["s1/p1", "s2/p1"]


def test_an_expression_that_does_not_fit_is_refused_with_a_name() -> None:
    with pytest.raises(Refused, match=r"data.groups=\(p is no regular expression \(missing \)"):
        groups_in_names([Path("p1.jpg")], "(p")
    with pytest.raises(Refused, match=r"finds no group in 2 images, first ant/q.jpg; give a regular expression"):
        groups_in_names([Path("ant/p1.jpg"), Path("ant/q.jpg"), Path("ant/r.jpg")], r"p\d")


def test_a_folder_is_split_by_the_groups_in_its_names(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{name}/p{i // 3}_{i}.png" for name in ("ant", "bee") for i in range(30)))
    data = load_samples(str(tmp_path), groups=r"(p\d+)_")
    assert data.group_leakage == ""
    assert set(data.splits["train"].groups) | set(data.splits["val"].groups) == {f"p{i}" for i in range(10)}
    assert Counter(data.splits["val"].labels) == {0: 6, 1: 6}
    for samples in data.splits.values():
        assert [path.name.split("_")[0] for path in samples.paths] == list(samples.groups)


def test_a_column_of_the_table_says_which_belong_together(tmp_path: Path) -> None:
    files = [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(8)]
    plant(tmp_path, *files)
    rows = [f"{file},{file[:3]},{i % 4}" for i, file in enumerate(files)]
    table = tmp_path / "x.csv"
    table.write_text("\n".join(["path,label,patient", *rows]))
    data = load_samples(None, str(table), val_fraction=0.25, groups="patient")
    assert len(data.splits["val"]) == 4
    assert len(set(data.splits["val"].groups)) == 1

    table.write_text("\n".join(["path,label,patient", *rows, f"{files[0]},ant,7"]))
    with pytest.raises(Refused, match=r"ant/0.png is in group 0 and in 7; correct one"):
        load_samples(None, str(table), groups="patient")
    table.write_text("\n".join(["path,label,patient", *rows, f"{files[0]},ant,"]))
    with pytest.raises(Refused, match=r"x.csv:18: the group \(data.groups\) is empty"):
        load_samples(None, str(table), groups="patient")
    with pytest.raises(Refused, match=r"data.groups=patiant finds no group in 16 images, .* or a column of data.csv"):
        load_samples(None, str(table), groups="patiant")


def test_groups_in_two_splits_are_named_and_may_be_refused(images: Path, small: list[str]) -> None:
    assert group_leakage({"train": ("a", "b", "b"), "val": ("c",)}) == ""
    overrides = [*small, r"data.groups='(\d)\.png'"]  # the same numbers lie in train/ and val/
    config = compose_config(overrides)
    found, _, _ = open_images(config, Facts())
    sentence = "4 groups lie in several splits (data.groups): 0 in train and val, 1 in train and val"
    assert any(warning.startswith(sentence) for warning in found.warnings)
    with pytest.raises(Refused, match=r"4 groups lie in several splits .* data.on_leak=warn"):
        open_images(compose_config([*overrides, "data.on_leak=refuse"]), Facts())

    cache = Path(config.cache.dir)
    inspection = inspect_images(find_samples(config.data, cache), cache)
    assert any(caveat.startswith(sentence) for caveat in inspection.caveats(32))
    assert inspection.refusals("refuse", "refuse")[0].startswith(sentence)


def test_trials_of_before_keep_their_keys() -> None:
    settings = flat(Config())
    assert key_of(settings) == key_of({key: value for key, value in settings.items() if key != "data.groups"})
    assert key_of(settings) != key_of({**settings, "data.groups": "patient"})
