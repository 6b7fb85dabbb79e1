"""Every YAML file that comes with the package works, and its header says how to run it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from finetune.compose import compose_config, override
from finetune.config import Config, flat
from finetune.network.backbone import build_backbone
from finetune.network.depths import depth_of
from finetune.sweep.search import corners
from finetune.sweep.spec import find_sweep, read_sweep

ROOT = Path(__file__).parent.parent
FILES = sorted(str(path.relative_to(ROOT / "conf").with_suffix("")) for path in (ROOT / "conf").rglob("*/*.yaml"))
OPTIONS = [file for file in FILES if not file.startswith("launcher/")]
EXPERIMENTS = [option for option in OPTIONS if option.startswith("experiment/")]
SWEEPS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "sweeps").rglob("*.yaml"))


def commands(path: Path) -> list[list[str]]:
    """The command lines in a file's leading comment, as words; two spaces end a command."""
    comment = re.match(r"(#.*\n)*", path.read_text())
    assert comment is not None
    found = re.findall(r"^# ((?:python -m finetune\.train|finetune|wandb|make) .*?)(?:  .*)?$", comment[0], re.M)
    return [line.split() for line in found]


def dotted(raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in raw.items():
        found |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_there_is_something_to_ship() -> None:
    assert {"model/resnet50", "experiment/head_only", "data/folder", "logger/wandb"} <= set(OPTIONS)
    assert {"sweeps/local.yaml", "sweeps/bayes.yaml"} <= set(SWEEPS)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_sets_what_its_file_says(option: str) -> None:
    group, name = option.split("/")
    if option == "logger/mlflow":
        pytest.importorskip("mlflow")
    raw = yaml.safe_load((ROOT / "conf" / f"{option}.yaml").read_text())
    raw.pop("defaults", None)
    own = dotted(raw, "" if group == "experiment" else f"{group}.")
    own.pop("cache.dir", None)  # an interpolation, which tests/test_compose.py resolves
    if own.get("data.size") == 0:  # the size of the weights, here ResNet50's
        own["data.size"] = 224
    composed = flat(compose_config([f"{group}={name}"]))
    assert {key: composed[key] for key in own} == own


@pytest.mark.parametrize("option", EXPERIMENTS)
def test_the_command_in_an_experiments_header_composes_it(option: str) -> None:
    (words,) = commands(ROOT / "conf" / f"{option}.yaml")
    assert words[:4] == ["python", "-m", "finetune.train", option.replace("/", "=")]
    root = compose_config(words[3:]).data.root
    assert root == ("FOLDER" if words[4:] else "shapes10")  # the embedded images need no folder


@pytest.mark.parametrize("file", SWEEPS)
def test_the_commands_in_a_sweeps_header_run_that_file(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = commands(ROOT / file)
    assert found
    for words in found:
        match words:
            case ["finetune", "sweep", name, *overrides]:
                assert find_sweep(name).samefile(ROOT / file)
                assert read_sweep(find_sweep(name), tuple(overrides)).fixed[-len(overrides) :] == tuple(overrides)
            case ["wandb", "sweep", name]:
                assert name == file
            case ["make", "sweep-local", *variables]:
                named = [word.removeprefix("SPEC=") for word in variables if word.startswith("SPEC=")]
                with_data = any(word.startswith("DATA=") for word in variables)
                assert (named or defaults_of_make()[0 if with_data else 1 :])[0] == file
            case _:
                raise AssertionError(words)


def defaults_of_make() -> list[str]:
    """What `make sweep-local` runs with DATA and without it."""
    return re.findall(r"^SPEC \?= (\S+)$", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize("file", SWEEPS)
def test_a_sweep_sweeps_keys_of_the_schema_over_values_that_compose(file: str) -> None:
    spec = read_sweep(ROOT / file)
    assert spec.name == Path(file).stem
    assert spec.parameters.keys() <= flat(Config()).keys()
    assert (spec.metric, spec.goal) == ("val/acc_best", "maximize")
    for params in corners(spec):
        config = compose_config([*spec.fixed, *(override(key, value) for key, value in params.items())])
        assert {key: flat(config)[key] for key in params} == params


@pytest.mark.parametrize("name", ["explore", "bayes", "freeze_depth"])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet18", "convnext_tiny"])
def test_a_sweep_of_ones_own_images_goes_with_another_network(name: str, backbone: str) -> None:
    spec = read_sweep(find_sweep(f"{name}.yaml"), (f"model.backbone={backbone}",))
    unit = compose_config(spec.fixed).model.freeze_unit
    depths = spec.parameters["model.freeze_depth"].choices
    assert depths is not None
    with torch.device("meta"):
        network = build_backbone(backbone)
    cuts = [depth_of(network, depth, unit)[1] for depth in depths]
    assert cuts[0] == 0
    assert cuts[-1] == len(network.parameter_names)
    assert cuts == sorted(set(cuts)), "no two of the depths are one cut"


@pytest.mark.parametrize("file", SWEEPS)
def test_wandb_takes_the_file_as_we_do(file: str) -> None:
    """By its client's own check of a file; its full schema is on the server, not in the package."""
    check = pytest.importorskip("wandb.apis.public.sweeps")
    if not hasattr(check, "_validate_config_and_fill_distribution"):
        pytest.skip("this release of wandb has no such check")
    raw = yaml.safe_load((ROOT / file).read_text())
    spec = read_sweep(ROOT / file)
    filled = check._validate_config_and_fill_distribution(raw)["parameters"]
    for key, parameter in filled.items():
        assert parameter.get("distribution", "categorical") == spec.parameters[key].kind


@pytest.mark.parametrize("file", SWEEPS)
def test_an_agent_of_wandb_passes_the_same_words_as_our_runner(file: str) -> None:
    for params in corners(read_sweep(ROOT / file)):
        agent = create_sweep_command_args({"args": {key: {"value": value} for key, value in params.items()}})
        assert agent["args_no_hyphens"] == [override(key, value) for key, value in params.items()]


@pytest.mark.filterwarnings("ignore")  # the package's own
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_fits_the_schema_of_wandbs_own_engine(name: str) -> None:
    import sweeps

    raw = yaml.safe_load((ROOT / name).read_text())
    assert sweeps.SweepConfig(raw)["parameters"].keys() == raw["parameters"].keys()
