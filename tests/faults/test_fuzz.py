"""Whatever is in a sweep file, an override, a folder of images or a record: an answer or a refusal, and soon."""

import json
import os
import string
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.compose import compose_config
from finetune.config import Config, flat
from finetune.data.decode import Transform, decode
from finetune.data.pixels import pixel_store
from finetune.data.samples import load_samples
from finetune.errors import Refused
from finetune.records.layout import RECORD
from finetune.records.read import finished_record, read_records
from finetune.records.result import Result
from finetune.report.caveats import caveats
from finetune.report.table import tabulate
from finetune.sweep.identity import spec_digest
from finetune.sweep.spec import METHODS, SweepSpec, read_sweep

FUZZ = settings(
    max_examples=100,
    deadline=timedelta(seconds=20),  # nothing may hang
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([10**400, -(2**63), "1e-3", "2020-13-45", "", "null", "${x}", "../x", "a\nb", "é", "\x00"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_letters, max_size=6) | SCALARS, inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from([*flat(Config()), "model", "optim.lrr", "hydra.run.dir", "_target_", ""])


def one_line(refusal: Refused) -> bool:
    return "\n" not in str(refusal) and 0 < len(str(refusal)) < 10_000


def snapshot(root: Path) -> dict[str, bytes]:
    """Every entry below `root`, and what is in it."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (*folders, *files):
            path = Path(os.fsdecode(os.path.join(folder, name)))  # noqa: PTH118 - bytes
            plain = path.is_file() and not path.is_symlink()
            found[str(path)] = path.read_bytes() if plain else b""
    return found


# The parser of sweep files

DISTRIBUTION = st.fixed_dictionaries(
    {},
    optional={
        "values": st.lists(VALUES, max_size=3) | VALUES,
        "value": VALUES,
        "min": SCALARS,
        "max": SCALARS,
        "q": SCALARS,
        "mu": SCALARS,
        "sigma": SCALARS,
        "distribution": st.sampled_from(
            ["uniform", "log_uniform_values", "int_uniform", "q_uniform", "normal", "beta"]
        ),
        "probabilities": VALUES,
        "parameters": VALUES,
    },
)
METRIC = st.fixed_dictionaries({"name": st.just("val/acc")}, optional={"goal": SCALARS, "target": SCALARS})
HYPERBAND = st.fixed_dictionaries(
    {"type": st.just("hyperband")}, optional=dict.fromkeys(("min_iter", "max_iter", "s", "eta", "strict"), SCALARS)
)
ENDLESS = {"type": "hyperband", "min_iter": 10**400}
STEEP = {"type": "hyperband", "max_iter": 27, "s": 10_000}
SWEEP = st.fixed_dictionaries(
    {"parameters": st.dictionaries(KEYS, DISTRIBUTION | VALUES, min_size=1, max_size=3) | VALUES},
    optional={
        "method": st.sampled_from(METHODS) | VALUES,
        "name": SCALARS,
        "metric": st.fixed_dictionaries({"name": st.just("val/acc")}, optional={"goal": SCALARS, "target": SCALARS})
        | VALUES,
        "run_cap": SCALARS,
        "command": st.lists(st.sampled_from(["-m", "finetune.train", "${args_no_hyphens}", "out=../x", "sh"])) | VALUES,
        "early_terminate": HYPERBAND | VALUES,
        "typo": SCALARS,
    },
)


def read_or_refused(file: Path, data: bytes) -> SweepSpec | None:
    file.write_bytes(data)
    try:
        return read_sweep(file)
    except Refused as refusal:
        if not one_line(refusal):
            raise
        return None


@FUZZ
@given(SWEEP)
@example({"method": "grid", "parameters": {"seed": {"distribution": "int_uniform", "min": 0, "max": 10**12}}})
@example({"method": "grid", "parameters": {"optim.lr": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-15}}})
@example({"parameters": {"seed": {"value": 10**400}}, "method": "grid"})
@example(
    {
        "parameters": {"seed": {"value": 1}},
        "method": "grid",
        "early_terminate": {"type": "hyperband", "min_iter": 10**400},
    }
)
@example({"parameters": {"seed": {"value": 1}}, "method": "grid", "early_terminate": STEEP})
def test_a_sweep_file_of_any_structure_is_read_or_refused(tmp_path: Path, raw: dict[str, Any]) -> None:
    spec = read_or_refused(tmp_path / "s.yaml", yaml.safe_dump(raw, allow_unicode=True).encode(errors="replace"))
    if spec is not None:
        assert len(spec_digest(spec)) == 12
        assert spec.parameters


WHOLE = Path(__file__).parent.parent.parent / "sweeps" / "explore.yaml"
LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))


@pytest.mark.slow
@FUZZ
@given(st.binary(max_size=60), st.integers(0, 10_000), st.integers(0, 40))
@example(LAUGHS.encode() + b"method: *a12\nparameters: {seed: {value: 1}}\n", 0, 10_000)
@example(b"a: &a {x: 1}\nb: {<<: [*a, *a]}\n", 0, 10_000)
@example(b"[" * 100_000, 0, 10_000)
@example(b"x: " + b"9" * 5000, 0, 10_000)
@example(b"x: 2020-13-45\n", 0, 10_000)
@example(b"x: !!timestamp y\n", 0, 10_000)
@example(b"x: !!bool y\n", 0, 10_000)
@example(b"\x00", 0, 10_000)
def test_a_sweep_file_with_any_bytes_in_it_is_read_or_refused(tmp_path: Path, odd: bytes, at: int, cut: int) -> None:
    whole = WHOLE.read_bytes()
    at %= len(whole)
    read_or_refused(tmp_path / "s.yaml", whole[:at] + odd + whole[at + cut :])


# Overrides

WORDS = st.builds(
    lambda sign, key, equals, value: f"{sign}{key}{equals}{value}",
    st.sampled_from(["", "+", "++", "~", "--", " "]),
    KEYS | st.text(max_size=8),
    st.sampled_from(["=", "", "=="]),
    SCALARS | st.text("[]{}(),:'\"\\$=!&* aé1.", max_size=12) | VALUES.map(lambda value: json.dumps(value)),
)


@pytest.mark.slow
@FUZZ
@given(st.lists(WORDS, min_size=1, max_size=2))
@example(["model.head.hidden=" + "[" * 300 + "]" * 300])
@example(["seed=" + "(" * 500])
@example(["data.root=${data.root}"])
@example(["model=../../x"])
@example(["data.root=\ud800"])
@example(["optim.lr=1" + "0" * 400])
def test_any_overrides_compose_or_are_refused(words: list[str]) -> None:
    try:
        config = compose_config(words)
    except Refused as refusal:
        if not one_line(refusal):
            raise
    else:
        assert flat(config).keys() == flat(Config()).keys()


# Folders of images


def encoded(form: str) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)).save(buffer, form)
    return buffer.getvalue()


SOUND = {form: encoded(form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")}
NAMES = st.sampled_from(["train", "val", "test", "a", "b", "x.jpg", ".hidden", "Thumbs.db"]) | st.binary(
    min_size=1, max_size=8
).filter(lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")).map(os.fsdecode)
ENTRIES = st.lists(
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=3),
        st.sampled_from(["", ".png", ".jpg", ".gif", ".txt", ".JPEG"]),
        st.sampled_from(["image", "image", "image", "noise", "empty", "folder", "pipe", "link"]),
        st.sampled_from([".", "..", "nothing", "/", "a", "../a/x.png"]),
    ),
    min_size=1,
    max_size=12,
)


def plant(root: Path, entries: list[tuple[list[str], str, str, str]]) -> None:
    for i, (parts, suffix, kind, target) in enumerate(entries):
        path = root.joinpath(*parts[:-1], parts[-1] + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                path.mkdir()
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "link":
                path.symlink_to(target)
            elif not path.is_symlink() and not path.is_fifo():
                sound = list(SOUND.values())[i % len(SOUND)]
                path.write_bytes({"image": sound, "noise": sound[:20] + bytes(range(i, 60)), "empty": b""}[kind])
        except OSError:
            continue  # two entries that cannot both be there


@pytest.mark.slow
@FUZZ
@given(ENTRIES, st.integers(0, 3), st.sampled_from(["follow", "refuse"]))
def test_any_folder_is_read_or_refused_and_left_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[list[str], str, str, str]], classes: int, links: str
) -> None:
    place = tmp_path_factory.mktemp("tree")
    root = place / "root"
    for name in "abc"[:classes]:
        (root / name).mkdir(parents=True)
        for i in range(2):
            (root / name / f"{i}.png").write_bytes(SOUND["PNG"])
    root.mkdir(exist_ok=True)
    plant(root, entries)
    before = snapshot(place)
    try:
        data = load_samples(str(root), links=links)
        for samples in data.splits.values():
            assert links == "follow" or all(path.resolve().is_relative_to(root) for path in samples.paths)
            pixel_store(samples, Transform(8, "squash", "nearest"), place / "cache", on_bad="skip", threads=1)
    except Refused as refusal:
        if not one_line(refusal):
            raise
    after = snapshot(place)
    assert {name: data for name, data in after.items() if not name.startswith(str(place / "cache"))} == before


@FUZZ
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", SOUND)
@given(st.data())
def test_an_image_with_any_bytes_in_it_is_read_or_unreadable(tmp_path: Path, form: str, data: st.DataObject) -> None:
    whole = bytearray(SOUND[form])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 200)))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        assert decode(tmp_path / "x").mode == "RGB"
    except ValueError as error:
        if not str(error):
            raise


@FUZZ
@given(
    st.binary(max_size=200)
    | st.lists(st.text(max_size=10), max_size=8).map(lambda row: ",".join(row).encode(errors="replace"))
)
@example(b"path,label\n" + b"a" * 200_000 + b",b\n")
@example(b'path,label\n"a,b\n')
@example(b"path,label\na\x00,b\n")
def test_any_table_of_images_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for text in (data, b"path,label,split\n" + data):
        (tmp_path / "t.csv").write_bytes(text)
        with pytest.raises(Refused):
            load_samples(None, str(tmp_path / "t.csv"))


# Records

RESULT = Result(
    key="0123456789ab",
    status="complete",
    reason="",
    freeze_depth=3,
    freeze_unit="block",
    seed=0,
    val_acc_best=0.5,
    best_epoch=1,
    trained_parameters=10,
    params={"optim.lr": 0.1},
    history=[{"epoch": 1, "train/loss": 1.0, "val/loss": 1.0, "val/acc": 0.5, "train/acc": 0.5, "lr": 0.1}],
)


@FUZZ
@given(st.integers(0, 3000), st.binary(max_size=6), st.integers(0, 6), st.booleans())
@example(0, b"[" * 100_000, 5000, False)
@example(0, b"9" * 5000, 5000, False)
@example(0, b"null", 5000, False)
@example(0, b'{"schema": 1}', 5000, False)
@example(0, b"", 5000, False)
def test_a_record_cut_or_changed_anywhere_is_a_record_or_none(
    tmp_path: Path, at: int, odd: bytes, cut: int, truncated: bool
) -> None:
    place = tmp_path / "trials" / RESULT.key
    place.mkdir(parents=True, exist_ok=True)
    RESULT.save(place)
    whole = (place / RECORD).read_bytes()
    at %= len(whole)
    (place / RECORD).write_bytes(whole[:at] if truncated else whole[:at] + odd + whole[at + cut :])
    try:
        Result.load(place)
    except ValueError as error:
        assert RECORD in str(error)  # noqa: PT017
        assert finished_record(place) is None
        with pytest.raises(Refused, match="holds no trial records"):
            read_records(tmp_path)
    else:
        records = read_records(tmp_path)
        assert isinstance(caveats(records, tabulate(records)), list)


@FUZZ
@given(st.sampled_from(list(vars(RESULT))), VALUES)
def test_a_record_with_any_value_in_a_field_is_a_record_or_none(tmp_path: Path, name: str, value: Any) -> None:
    RESULT.save(tmp_path)
    raw = {**json.loads((tmp_path / RECORD).read_text()), name: value}
    (tmp_path / RECORD).write_text(json.dumps(raw, default=str, skipkeys=True))
    try:
        assert isinstance(Result.load(tmp_path), Result)
    except ValueError as error:
        assert RECORD in str(error)  # noqa: PT017
