"""What is built carries what it needs, and works from an empty folder in an environment of its own."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from finetune import __version__
from tests.test_api import page_examples

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment that has the wheel, and the packages that it needs from the environment of the tests."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))  # whose own .pth files are not followed
    interpreter = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--ignore-installed", str(wheel)], check=True)
    return interpreter


def contents(wheel: Path) -> Mapping[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_the_wheel_holds_the_package_alone_and_no_path_of_a_machine(wheel: Path) -> None:
    files = contents(wheel)
    about = f"freeze_depth-{__version__}.dist-info"
    assert wheel.name == f"freeze_depth-{__version__}-py3-none-any.whl"
    assert {name.partition("/")[0] for name in files} == {"finetune", about}
    assert not [name for name in files if "test" in Path(name).name or "__pycache__" in name]

    own = {
        f"finetune/{file.relative_to(ROOT)}" if folder != "finetune" else str(file.relative_to(ROOT))
        for folder in ("conf", "sweeps", "finetune")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in files if name.startswith("finetune/")} == own
    weights = [len(content) for name, content in files.items() if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert max(weights) <= 6_000_000

    for name, content in files.items():
        for path in (str(ROOT), str(Path.home()) + "/", sys.prefix):
            assert path.encode() not in content, name
    assert files[f"{about}/entry_points.txt"].decode().split() == [
        *("[console_scripts]", "finetune", "=", "finetune.__main__:main"),
    ]


def test_the_page_of_an_index_has_no_picture_and_no_link_that_leads_nowhere(dist: Path, wheel: Path) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    assert subprocess.run(check, capture_output=True, text=True, check=True).stdout.count("PASSED") == 2

    metadata = contents(wheel)[f"freeze_depth-{__version__}.dist-info/METADATA"].decode()
    assert "# finetune" in metadata
    assert "make sweep-local" in metadata
    targets = re.findall(r"\]\(([^)]+)\)", metadata)
    assert all(target.startswith("http") for target in targets), targets


def test_the_sdist_builds_the_wheel_that_the_checkout_builds(dist: Path, wheel: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / wheel.name) == contents(wheel)

    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"README.md", "CHANGELOG.md", "Makefile", "requirements.lock", "tests/conftest.py"} <= names


def test_installing_it_takes_no_other_packages_where_the_needed_ones_are(wheel: Path, tmp_path: Path) -> None:
    """`--no-index`: pip would fail if it wanted anything else, or another version of what is there."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-index", "--report", "report.json"]
    subprocess.run([*pip, str(wheel)], cwd=tmp_path, check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["metadata"]["name"] for entry in report["install"]] == ["freeze-depth"]


@pytest.mark.long
def test_the_command_works_from_an_empty_folder(python: Path, tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FINETUNE_FAULTS")}

    def finetune(*words: str) -> str:
        command = [str(python.parent / "finetune"), *words]
        shown = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        return shown.stdout

    assert finetune("--version") == f"finetune {__version__}\n"
    where = subprocess.run(
        [python, "-c", "import finetune; print(finetune.__file__)"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(python.parent.parent)

    assert "36 trials" in finetune("plan", "local.yaml")
    assert "layer4.2" in finetune("depths", "narrow_resnet50")
    assert "4 complete" in finetune("sweep", "local.yaml", "--trials", "4", "--no-repeats", "trainer.epochs=1")
    assert "report.html" in finetune("report", "runs/local")
    assert "freeze_depth" in finetune("best", "runs/local")
    finetune("export", "runs/local", "model")
    assert {"model.onnx", "model.pt2", "model.safetensors"} <= {file.name for file in (place / "model").iterdir()}

    images = ROOT / "tests" / "kept" / "0.1.0" / "images"
    assert "class0/0.png" in finetune("predict", "model", str(images / "val"))
    assert "27 images" in finetune("check", str(images))


def test_the_examples_in_python_work_from_an_empty_folder(python: Path, tmp_path: Path, images: Path) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    examples = "\n".join([*page_examples(place, images), "print(finetune.__file__, frame.shape[0])"])
    (place / "program.py").write_text(f'if __name__ == "__main__":\n{textwrap.indent(examples, "    ")}')

    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FINETUNE_FAULTS")}
    command = [python, "-W", "ignore", "program.py"]
    shown = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    where, rows = shown.stdout.splitlines()[-1].split()
    assert Path(where).is_relative_to(python.parent.parent)
    assert rows == "2"
