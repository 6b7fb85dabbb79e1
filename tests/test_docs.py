"""The documents say what the commands do: every command in a `sh` or `console` block is run, or at least understood."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from finetune import train
from finetune.cli import app
from finetune.compose import compose_config
from finetune.sweep.search import corners
from finetune.sweep.spec import find_sweep, read_sweep
from tests.models import draw, finetune, random_weights

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in DOCS.glob("*.md") if page.name != "log.md")]
TINY = ["data.size=32", "data.batch_size=8", "trainer.epochs=1", "trainer.accelerator=cpu"]
"""Settings that make a trial a matter of a second."""

ONLY_UNDERSTOOD = {
    r"finetune (agent|scheduler|sync|dashboard) ": "needs W&B's server; tests/test_wandb.py runs them against one",
    r"finetune sweep .*--launcher slurm": "needs SLURM; tests/sweep/test_cluster.py runs it on one",
    r"python -m finetune.train .*logger.project": "needs W&B's server",
    r"finetune report .*--serve": "serves until it is stopped; a test of the page asks it",
    r"(finetune|python -m finetune.train) --plugin mine.py ": "the test of the page on networks runs it",
}
"""Commands of ours that are parsed with all their words and not run, and why."""
OTHERS = {
    r"make [\w-]+": "a target of the Makefile: `make --dry-run` shows what it would run, which is understood in turn",
    r"wandb sweep ": "needs W&B's server; its file is read",
    r"wandb (agent|sync|login)": "needs W&B's server",
    r"finetune --install-completion": "changes the shell of whoever runs the tests; tested below in a home of its own",
    r"source \.venv/bin/activate": "the environment of the tests is active already",
    r"uvx --from ": "makes an environment; tests/test_package.py runs the wheel in one",
    r"(pip|apt-get) install |sbatch |export |eval ": "changes the machine, or needs a cluster",
}
"""Commands that are not ours, or that only look at the shell, and why they are not run."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.S | re.M)


def commands(page: str) -> Iterator[str]:
    """The command lines of a page, comments taken off and continued lines joined."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip()
            if command:
                yield command
    for block in blocks(page, "console"):
        yield from re.findall(r"^\$ (.*)$", block, re.M)


def matching(command: str, table: dict[str, str]) -> str | None:
    return next((pattern for pattern in table if re.match(pattern, command)), None)


def understood(words: list[str]) -> None:
    """Fail unless every subcommand, option and override key of one of our commands exists."""
    if "--plugin" in words:  # which every command takes, and whose networks are known to nobody here
        at = words.index("--plugin")
        assert words[at + 1].endswith(".py"), words
        words = [word for word in [*words[:at], *words[at + 2 :]] if not word.startswith("model.backbone=")]
    if words[:3] == ["python", "-m", "finetune.train"]:
        given = [word for word in words[3:] if not word.startswith("-")]
        compose_config([word for word in given if word != "job"])
        return
    assert words[0] == "finetune", words
    group = typer.main.get_group(app)
    with group.make_context("finetune", words[1:]) as context:
        if len(words) > 1 and not words[1].startswith("-"):
            _, command, rest = group.resolve_command(context, words[1:])
            assert command is not None
            command.make_context(words[1], rest, parent=context)
    if words[1:2] in (["sweep"], ["plan"]) and "--help" not in words:
        overrides = tuple(word for word in words[3:] if "=" in word and not word.startswith("-"))
        spec = read_sweep(find_sweep(words[2]), overrides)
        compose_config(spec.overrides(corners(spec)[0]))


def tiny(words: list[str]) -> list[str]:
    """A command of ours whose trials take a second: small images, one epoch, at most two trials."""
    file = words[2] if words[:2] == ["finetune", "sweep"] else ""
    if not (file or words[:3] == ["python", "-m", "finetune.train"]) or {"--help", "--cfg"} & set(words):
        return words
    swept = yaml.safe_load(find_sweep(file).read_text())["parameters"] if file else {}
    fast = [word for word in TINY if word.partition("=")[0] not in swept]
    few = ["--trials", "2", *(["--no-repeats"] if "--margin" not in words else [])]
    return [*words, *fast, *(few if file else [])]  # of words that come twice, the last one counts


def with_weights(words: list[str]) -> list[str]:
    """The same command on weights of our own, where it would download some."""
    trains = words[:3] == ["python", "-m", "finetune.train"]
    if not (trains or words[:2] == ["finetune", "sweep"]) or {"--help", "--cfg"} & set(words):
        return words
    given = [word for word in words if "=" in word and not word.startswith("-")]
    if not trains:
        spec = read_sweep(find_sweep(words[2]), tuple(given))
        given = spec.overrides(corners(spec)[0])
    model = compose_config(given).model
    return [*words, f"model.weights={model.backbone}.pth"] if model.weights.startswith("IMAGENET") else words


@pytest.fixture
def place(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the documents name: images, new images, weights, tables, sweep files, a finished sweep."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "FOLDER")
    (tmp_path / "FOLDER").rename(tmp_path / "images")
    for name in ("FOLDER", "NEW-IMAGES", "IMAGES"):
        Path(name).symlink_to("images")
    Path("PHOTOS").symlink_to("images/train")  # class folders alone: no val/
    Path("sweeps").symlink_to(ROOT / "sweeps")
    lines = [f"{path.absolute()},{path.parent.name}" for path in sorted(Path("images/train").rglob("*.png"))]
    Path("labels.csv").write_text("\n".join(["path,label", *lines]))
    Path("mine.yaml").write_text(blocks("docs/sweeps.md", "yaml")[0])
    for name in ("resnet50", "resnet18"):
        kept = cache / f"{name}.pth"
        if not kept.exists():
            random_weights(name, kept)
        Path(f"{name}.pth").symlink_to(kept)
    return tmp_path


SWEPT = {
    "README.md": ["explore"],
    "docs/your-own-data.md": [],
    "docs/wandb.md": [],
    "docs/faq.md": [],
    "docs/report.md": ["explore"],
    "docs/reliability.md": ["explore"],
}
"""Sweeps that a page takes for finished before its first command."""
COPIES = {"docs/report.md": ["local", "first", "second"]}
"""Other names under which it finds the first of them."""
PATHS = {"/path/to/images": "FOLDER", "/path/to/resnet50.pth": "weights.pth", "/shared/images": "FOLDER"}


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, there in PATHS.items():
        command = command.replace(text, there)
    words = shlex.split(command)
    if words[0] == "make":
        for passed_on in ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES"):  # by `make test ARGS=…`
            monkeypatch.delenv(passed_on, raising=False)
        shown = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        for line in re.findall(r"^\.venv/bin/(finetune .*)$", shown.stdout, re.M):
            understood(shlex.split(line))
    elif words[:2] == ["wandb", "sweep"]:
        assert Path(words[2]).is_file()
        read_sweep(Path(words[2]))
    elif matching(command, OTHERS):
        pass
    elif matching(command, ONLY_UNDERSTOOD):
        if words[:3] != ["python", "-m", "pytest"]:
            understood(words)
    elif words[0] == "finetune":
        assert finetune(monkeypatch, *tiny(with_weights(words))[1:]) == 0
    elif words[:3] == ["python", "-m", "finetune.train"] and "--cfg" in words:
        understood(words)
        ran = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    elif words[:3] == ["python", "-m", "finetune.train"]:
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert train.run_trial(tiny(with_weights(words))[3:], listen=False) == 0
    else:
        raise AssertionError(f"nothing is known of this command: {command}")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the page's order, on tiny images; what cannot run here is understood to the last word."""
    found = list(commands(page))
    assert found
    for name in SWEPT.get(page, []):
        run(f"finetune sweep {name}.yaml data.root=FOLDER", monkeypatch)
    for name in COPIES.get(page, []):
        shutil.copytree(f"runs/{SWEPT[page][0]}", f"runs/{name}")
    for command in found:
        try:
            run(command, monkeypatch)
        except (AssertionError, Exception) as error:
            said = capfd.readouterr()
            raise AssertionError(f"{page}: {command}\n{error}\n{said.out[-2000:]}{said.err[-2000:]}") from error


def test_every_reason_for_not_running_a_command_is_used() -> None:
    every = [command for page in PAGES for command in commands(page)]
    for pattern in (*ONLY_UNDERSTOOD, *OTHERS):
        assert any(re.match(pattern, command) for command in every), pattern


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("finetune sweeep explore.yaml", "No such command 'sweeep'"),
        ("finetune sweep explore.yaml --trails 3", "No such option"),
        ("finetune sweep nothing.yaml", "there is no such sweep file"),
        ("finetune plan explore.yaml seeds=3", "did you mean seed?"),
        ("finetune agent", "Missing argument 'SWEEP'"),
        ("finetune predict model x --top 0", "Invalid value for '--top'"),
        ("python -m finetune.train data.root=x optim.rl=3", "did you mean optim.lr?"),
        ("python -m finetune.train experiment=nothing", "conf/experiment has no 'nothing'"),
        ("python -m finetune.tran", "finetune.tran"),
    ],
)
def test_a_wrong_command_is_not_understood(wrong: str, why: str) -> None:
    with pytest.raises(Exception, match=r".") as error:
        understood(shlex.split(wrong))
    told = getattr(error.value, "format_message", lambda: str(error.value))()
    assert why in told


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, "CONTRIBUTING.md", "docs/log.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / link).exists(), (page, link)


def test_the_sweep_pages_tables_name_what_there_is() -> None:
    """Every key, metric and distribution of the code, and no other."""
    from finetune.sweep import spec
    from finetune.sweep.distribution import DISTRIBUTIONS
    from finetune.sweep.goal import METRICS

    text = (DOCS / "sweeps.md").read_text()
    top, _, rest = text.partition("## Top-level keys")[2].partition("## A parameter")
    keys = [key for row in re.findall(r"^\| (`.*?) \|", top, re.M) for key in re.findall(r"`(\w+)`", row)]
    assert set(keys) == {*spec._READ, *spec._IGNORED}
    kinds = [kind for row in re.findall(r"^\| (`.*?) \|", rest, re.M) for kind in re.findall(r"`(\w+)`", row)]
    assert set(kinds) == set(DISTRIBUTIONS) | {"distribution"}
    assert all(f"`{metric}`" in top for metric in METRICS)


def test_every_row_of_the_table_of_faults_has_a_test_and_every_such_test_a_row() -> None:
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "reliability.md").read_text(), re.M)
    assert rows == [str(number) for number in range(1, len(rows) + 1)]
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert {f"{int(row):02}" for row in rows} == set(re.findall(r"def test_fault_(\d+)_", tests))


@pytest.mark.slow
def test_following_the_page_brings_a_network_of_ones_own(tmp_path: Path, place: Path) -> None:
    """Write the file, run the commands, and predict with what was exported."""
    page = "docs/backbones.md"
    (tmp_path / "mine.py").write_text(blocks(page, "python")[0])
    save = "import torch, mine; torch.save(mine.build().state_dict(), 'mine.pth')"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    environment.pop("FINETUNE_PLUGIN", None)
    subprocess.run([sys.executable, "-c", save], cwd=tmp_path, env=environment, check=True)
    if not (tmp_path / "FOLDER").exists():
        (tmp_path / "FOLDER").symlink_to(tmp_path / "images")

    said = []
    own = [command for command in commands(page) if "mine" in command]
    for command in [*own, "finetune --plugin mine.py predict model FOLDER"]:
        words = shlex.split(command)
        words = [*words, *TINY] if "finetune.train" in words else ["python", "-m", "finetune.cli", *words[1:]]
        ran = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, (command, ran.stdout[-3000:], ran.stderr[-3000:])
        said.append(ran.stdout)
    assert re.search(r"^ *7 +6 ", said[0], re.M), said[0]


def test_completion_is_installed_and_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a home of its own, from a shell, which is what the command looks for, with the words that a shell passes."""
    program = "import sys; sys.argv[0] = 'finetune'; from finetune.cli import main; sys.exit(main())"
    environment = {"HOME": str(tmp_path), "SHELL": "/bin/bash", "PATH": "/usr/bin:/bin"}

    def command(*words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        everything = {**environment, **more}
        shell = ["/bin/bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-c", program, *words]
        return subprocess.run(shell, cwd=ROOT, env=everything, capture_output=True, text=True)

    assert command("--install-completion", "bash").returncode == 0
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_FINETUNE_COMPLETE=complete_bash" in script.read_text()
    for typed, at, expected in (("finetune ex", "1", "export"), ("finetune predict --c", "2", "--csv")):
        done = command(_FINETUNE_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=at)
        assert expected in done.stdout.split(), done


def printed(*arguments: str) -> list[str]:
    lines = CliRunner().invoke(app, arguments, standalone_mode=False).stdout.splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def test_freeze_depth_shows_the_depth_table_of_resnet50() -> None:
    text = (DOCS / "freeze-depth.md").read_text()
    block = text.split("$ finetune depths resnet50\n")[1].split("```")[0]
    assert [line.rstrip() for line in block.splitlines() if line.strip()] == printed("depths", "resnet50")


def test_the_readings_of_100_layers_are_what_the_table_says() -> None:
    rows = {line.split()[0]: line.split()[1] for line in printed("depths", "resnet50", "--unit", "tensor")[3:]}
    assert (rows["100"], rows["91"]) == ("layer3.2.conv3.weight", "layer3.1.conv3.weight")
