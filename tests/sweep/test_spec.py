import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.compose import override, override_values
from finetune.errors import Refused
from finetune.sweep.distribution import Distribution
from finetune.sweep.goal import _METRIC
from finetune.sweep.spec import _ELSEWHERE, _IGNORED, _READ, SweepSpec, find_sweep, read_sweep
from finetune.sweep.stopping import _KEYS, Hyperband

COMMAND = '["${env}", "${interpreter}", "-m", finetune.train, model=resnet50, seed=3, "${args_no_hyphens}"]'


def read(tmp_path: Path, text: str, *overrides: str) -> SweepSpec:
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return read_sweep(path, overrides)


def lr(parameter: str, method: str = "{method: random, run_cap: 3") -> str:
    """A sweep over the learning rate alone."""
    return f"{method}, parameters: {{optim.lr: {parameter}}}}}"


GRID = "{method: grid"
REFUSED = {
    "": "is not a sweep file: it must have `method` and `parameters`",
    "- method": "is not a sweep file",
    "{method: grid}": "is not a sweep file",
    "{method: grid, parameters: {}}": "is not a sweep file",
    "{method: grid, parameters: {seed: [}": "is not a readable YAML file: while parsing a flow node",
    "method:\tgrid\n\t- x": "is not a readable YAML file: while scanning",
    "{runn_cap: 3, method: grid, parameters: {seed: 1}}": "key 'runn_cap' is not supported; did you mean run_cap?",
    "{parameters: {seed: 1}}": "method None is not supported; choose from bayes, grid, random",
    "{method: gird, parameters: {seed: 1}}": "method 'gird' is not supported; did you mean grid?",
    "{method: random, parameters: {seed: 1}}": "method random never ends by itself; add run_cap: NUMBER",
    "{method: grid, run_cap: 0, parameters: {seed: 1}}": "run_cap 0 must be a whole number of at least 1",
    "{method: grid, run_cap: true, parameters: {seed: 1}}": "run_cap True must be a whole number",
    "{method: grid, metric: val/acc, parameters: {seed: 1}}": "metric must be",
    "{method: grid, metric: {name: val/acc, goal: max}, parameters: {seed: 1}}": "metric.goal 'max' is not known; use",
    "{method: grid, parameters: {optim.lrr: 1}}": "there is no key 'optim.lrr'; did you mean optim.lr?",
    "{method: grid, parameters: {xyzzy: 1}}": "there is no key 'xyzzy'; `python -m finetune.train --cfg job` lists",
    "{method: grid, command: python train.py, parameters: {seed: {value: 1}}}": "command must be a list of words",
    "{method: grid, command: [python, -m, finetune.train], parameters: {seed: {value: 1}}}": "must hold ${args_no_hyp",
    '{method: grid, command: [python, e.py, "${args_no_hyphens}"], parameters: {seed: {value: 1}}}': "no other program",
    lr("{vales: [1]}"): "optim.lr: 'vales' is not supported; did you mean values?",
    lr("{}"): "optim.lr: give `value`, `values`, or `min` and `max`",
    lr("{min: 1}"): "optim.lr: give `value`, `values`, or `min` and `max`",
    lr("{values: []}"): "optim.lr: values must be a list with at least one entry",
    lr("{values: 0.1}"): "optim.lr: values must be a list",
    lr("{values: [{name: 1}]}"): "optim.lr: a value cannot be a mapping; sweep its keys one by one",
    lr("{values: [0.1, 1e-3]}"): "optim.lr: YAML reads 1e-3 as text; write 1.0e-03 with a dot",
    lr("1e-3"): "optim.lr must be a mapping such as {value: 1e-3} or {values: […]}",
    lr("{value: [.inf]}"): "optim.lr: inf is not a finite number",
    lr("{values: [abc]}"): "optim.lr: 'abc' is not a number",
    lr("{values: [.5e3]}"): "optim.lr: YAML reads .5e3 as text; write 5.0e+02 with a dot",
    lr("{values: [2020-01-01]}"): "optim.lr: 2020-01-01 is a date; give numbers, words, or lists of them",
    lr("{values: &x [*x]}"): "give numbers, words, or lists of them",
    lr("{values: [1, 2], probabilities: 0.5}"): "optim.lr: probabilities must be a list",
    lr("{values: [1, 2], probabilities: [a, b]}"): "optim.lr: a probability must be a number, not 'a'",
    lr("{distribution: constant, values: [1, 2]}"): "'values' does not belong to a constant distribution, which has va",
    lr("{min: 0.0, max: 1.0, q: 0.1}"): "'q' does not belong to a uniform distribution, which has min, max",
    lr("{values: [1], min: 0}"): "'min' does not belong to a categorical distribution",
    lr("{distribution: normal, mu: 1, sigma: 0}"): "sigma 0 of a normal distribution must be above 0",
    lr("{distribution: beta, a: -1, b: 1}"): "a -1 of a beta distribution must be above 0",
    lr("{distribution: log_uniform, min: 0, max: 1000}"): "the ends of this log_uniform distribution are too large",
    "{method: grid, parameters: {seed: {value: 1}, seed: {value: 2}}}": "key 'seed' comes twice",
    "{name: ../x, method: grid, parameters: {seed: {value: 1}}}": "name '../x' must be a plain word",
    "{name: /x, method: grid, parameters: {seed: {value: 1}}}": "name '/x' must be a plain word",
    "{program: evil.py, method: grid, parameters: {seed: {value: 1}}}": (
        "key 'program' is not supported; use command, as sweeps/local.yaml has it"
    ),
    "{job: me/p/job-x:latest, method: grid, parameters: {seed: {value: 1}}}": "key 'job' is not supported; remove it,",
    "{image_uri: x, method: grid, parameters: {seed: {value: 1}}}": "key 'image_uri' is not supported; remove it, and",
    "{kind: run, method: grid, parameters: {seed: {value: 1}}}": "kind 'run' is not supported; remove it, or set kind:",
    "{metrics: [], method: grid, parameters: {seed: {value: 1}}}": "metrics must be a list of one or more",
    "{metrics: [{name: val/acc}], metric: {name: val/acc}, method: grid, parameters: {seed: {value: 1}}}": (
        "metrics must be a list of one or more, without metric beside it"
    ),
    "{metrics: [{name: val/loss}, {name: speed}], method: grid, parameters: {seed: {value: 1}}}": (
        "metric.name 'speed' is not reported; choose from"
    ),
    "{method: custom, parameters: {seed: {value: 1}}}": "method bayes never ends by itself; add run_cap: NUMBER",
    "{method: grid, metric: {name: val/acc_best}, parameters: {seed: {value: 1}}}": (
        "metric val/acc_best without a goal would be minimized, which keeps the worst trial; write metric: {name: "
        "val/acc_best, goal: maximize}"
    ),
    "{method: grid, metric: {name: train/acc, goal: minimize}, parameters: {seed: {value: 1}}}": (
        "metric train/acc would be minimized, which keeps the worst trial; write metric: {name: train/acc, goal: maximi"
    ),
    "{method: grid, metric: {name: val/loss, goal: maximize}, parameters: {seed: {value: 1}}}": (
        "metric val/loss would be maximized, which keeps the worst trial; write metric: {name: val/loss, goal: minimize"
    ),
    "{method: bayes, run_cap: 3, metric: {name: val/loss, impute: worst}, parameters: {seed: {value: 1}}}": (
        "metric.impute 'worst' is not supported; remove it: method bayes learns from the trials that reported a value"
    ),
    lr("{values: [1, 2], distribution: categorical_w_probabilities}"): "distribution needs probabilities",
    lr("{distribution: log_uniform, min: 0.0001, max: 0.1}"): (
        "optim.lr: min and max of a log_uniform distribution are logarithms, so it draws from 1 to 1.105; use "
        "distribution: log_uniform_values to give the values"
    ),
    lr(
        "{distribution: q_log_uniform, min: 1.0e-4, max: 0.1, q: 0.1}"
    ): "use distribution: q_log_uniform_values to give",
    lr(
        "{distribution: inv_log_uniform, min: 0.001, max: 0.1}"
    ): "draws from 0.9048 to 0.999; use distribution: inv_log_un",
    lr("{distribution: log_normal, mu: 0.001, sigma: 1}"): (
        "mu of a log_normal distribution is a logarithm, so mu 0.001 draws values around 1.001; give a mu below 0"
    ),
    "{method: random, run_cap: 3, parameters: {model.head.dropout: {distribution: log_uniform, min: 0.1, max: 0.5}}}": (
        "model.head.dropout: min and max of a log_uniform distribution are logarithms, so it draws from 1.105 to 1.649"
    ),
    '{method: grid, command: [python, finetune.train, "${args_no_hyphens}"], parameters: {seed: {value: 1}}}': (
        "a sweep file names no other program"
    ),
    '{method: grid, command: [sh, -m, finetune.train, "${args_no_hyphens}"], parameters: {seed: {value: 1}}}': (
        "a sweep file names no other program"
    ),
    "{method: grid, parameters: {model: {values: [a]}}}": "'model' is a group of keys; give one of its keys, such as",
    "{method: grid, metric: {name: accuracy}, parameters: {seed: 1}}": "metric.name 'accuracy' is not reported; choose",
    "{method: grid, metric: {name: val/acc, goal: maximize, target: high}, parameters: {seed: 1}}": "target must be a",
    lr("{parameters: {}}"): "optim.lr must hold nested parameters and nothing else, or values",
    **{
        f"{{method: grid, early_terminate: {given}, parameters: {{seed: {{value: 1}}}}}}": message
        for given, message in {
            "{type: median}": "early_terminate must be a mapping with type: hyperband",
            "{type: hyperband}": "early_terminate: give either min_iter, or max_iter with s",
            "{type: hyperband, min_iter: 3, max_iter: 27, s: 2}": "give either min_iter, or max_iter with s",
            "{type: hyperband, max_iter: 27}": "max_iter and s belong together",
            "{type: hyperband, min_iter: 0}": "min_iter 0 must be a whole number of at least 1",
            "{type: hyperband, min_iter: 3, eta: 1}": "eta 1 must be above 1",
            "{type: hyperband, min_iter: 3, strict: 1}": "strict must be true or false",
            "{type: hyperband, min_iter: 3, itr: 1}": "'itr' is not supported",
            "{type: hyperband, max_iter: 2, s: 1}": "no band lies before max_iter 2",
        }.items()
    },
    lr("{min: 1e-5, max: 0.1}"): "optim.lr: min must be a number, not '1e-5'; write 1.0e-05 with a dot",
    lr("{distribution: uniform, min: 0.1, max: true}"): "optim.lr: max must be a number, not True",
    lr("{distribution: uniform, min: 0.1}"): "optim.lr: max must be a number, not None",
    lr("{min: 1, max: 0}"): "optim.lr: min 1 must be below max 0",
    lr("{min: .nan, max: 0.5}"): "optim.lr: min nan is not a finite number",
    lr(
        "{distribution: log_unform, min: 0, max: 1}"
    ): "distribution 'log_unform' is not supported; did you mean log_uni",
    lr("{distribution: xyzzy}"): "distribution 'xyzzy' is not supported; choose from beta, categorical",
    lr("{distribution: log_uniform_values, min: 0, max: 1}"): "min 0 of a log_uniform_values distribution must be abov",
    lr("{distribution: inv_log_uniform_values, min: 0, max: 1}"): "min 0 of a inv_log_uniform_values distribution",
    lr("{distribution: int_uniform, min: 0.5, max: 3}"): "min and max of an int_uniform distribution must be whole",
    lr("{distribution: q_uniform, min: 0, max: 1, q: 0}"): "optim.lr: q 0 must be above 0",
    lr("{distribution: q_uniform, min: 0, max: 1, q: -0.1}"): "optim.lr: q -0.1 must be above 0",
    lr("{values: [1, 2], probabilities: [0.5]}"): "optim.lr: probabilities must be 2 shares that sum to 1",
    lr("{values: [1, 2], probabilities: [0.5, 0.6]}"): "optim.lr: probabilities must be 2 shares that sum to 1",
    lr("{values: [1, 2], probabilities: [-0.5, 1.5]}"): "optim.lr: probabilities must be 2 shares that sum to 1",
    "{method: bayes, run_cap: 2, parameters: {data.root: {values: ['${oc.env:HOME}/a', '${oc.env:HOME}/b']}}}": (
        "data.root: method bayes learns from values as records have them; write them out"
    ),
    "{method: grid, parameters: {cache.mode: {values: [on, off]}}}": "cache.mode changes no result, so it cannot be sw",
    "{method: grid, parameters: {data.workers: {min: 1, max: 4}}}": "give data.workers=… beside the file",
    lr("{min: 0.1, max: 1.0}", GRID): "optim.lr: a grid needs values to list, not a uniform distribution; give `values",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(Refused, match=re.escape(REFUSED[text])) as refusal:
        read(tmp_path, text)
    assert str(refusal.value).startswith(f"{tmp_path}/s.yaml")
    assert "\n" not in str(refusal.value)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    touch = f"!!python/object/apply:os.system ['touch {tmp_path}/executed']"
    with pytest.raises(Refused, match=r"s\.yaml is not a readable YAML file: could not determine a constructor"):
        read(tmp_path, lr(f"{{values: [{touch}]}}"))
    assert not (tmp_path / "executed").exists()


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes.yaml", "none.yaml", "."):
        with pytest.raises(Refused, match="is not a readable YAML file: "):
            read_sweep(tmp_path / name)


@pytest.mark.parametrize("word", ["optim.lr=0.1", "++optim.lr=0.1"])
def test_a_key_cannot_be_swept_and_given(tmp_path: Path, word: str) -> None:
    with pytest.raises(Refused, match=r"optim\.lr=0\.1: optim\.lr is swept by .*s\.yaml; remove it from one of the"):
        read(tmp_path, lr("{values: [0.2]}"), "seed=1", word)


def test_listed_values_have_the_type_of_their_key(tmp_path: Path) -> None:
    spec = read(tmp_path, "{method: grid, parameters: {trainer.precision: {values: [32, bf16]}, seed: {values: [1]}}}")
    assert spec.parameters["trainer.precision"].values == ("32", "bf16")


def test_one_value_of_a_setting_that_changes_no_result_is_given_to_every_trial(tmp_path: Path) -> None:
    spec = read(tmp_path, "{method: grid, parameters: {data.workers: {value: 2}, seed: {values: [0, 1]}}}")
    assert spec.overrides({"data.workers": 2}) == ["data.workers=2"]


def test_nested_parameters_are_those_of_their_dotted_keys(tmp_path: Path) -> None:
    nested = (
        "{optim: {parameters: {lr: {value: 0.1}}}, model: {parameters: {head: {parameters: {dropout: {value: 0.5}}}}}}"
    )
    spec = read(tmp_path, f"{{method: grid, parameters: {nested}}}")
    dotted = read(tmp_path, "{method: grid, parameters: {optim.lr: {value: 0.1}, model.head.dropout: {value: 0.5}}}")
    assert spec.parameters == dotted.parameters
    assert [problem.split(";")[0] for problem in spec.not_for_agents] == [
        "it has no command",
        "nested parameters reach Hydra as one mapping",
    ]
    assert len(dotted.not_for_agents) == 1


def test_stopping_and_target_are_read(tmp_path: Path) -> None:
    metric = "metric: {name: val/loss, target: 0.2}"
    stop = "early_terminate: {type: hyperband, max_iter: 27, s: 2, eta: 3, strict: true}"
    spec = read(tmp_path, f"{{method: grid, {metric}, {stop}, parameters: {{seed: {{value: 1}}}}}}")
    assert (spec.target, spec.stopping) == (0.2, Hyperband(None, 27, 2, 3.0, True))


def test_a_number_of_trials_given_beside_the_file_overrules_run_cap(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("{method: random, parameters: {seed: {min: 0, max: 9}}}")
    assert read_sweep(tmp_path / "s.yaml", trials=5).run_cap == 5


def parameter(tmp_path: Path, text: str) -> Distribution:
    return read(tmp_path, lr(text)).parameters["optim.lr"]


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("{value: 0.1}", Distribution("constant", (0.1,))),
        ("{values: [0.1, 1.0e-5, null, [256, 128]]}", Distribution("categorical", (0.1, 1e-5, None, [256, 128]))),
        ("{values: [1, 2], probabilities: [0.25, 0.75]}", Distribution("categorical", (1, 2), (0.25, 0.75))),
        ("{min: 0, max: 17}", Distribution("int_uniform", bounds=(0, 17))),
        ("{min: 0.5, max: 1.0}", Distribution("uniform", bounds=(0.5, 1))),
        ("{distribution: log_uniform, min: -9, max: -1}", Distribution("log_uniform", bounds=(-9, -1))),
        ("{distribution: normal}", Distribution("normal", bounds=(0, 1))),
        ("{distribution: log_normal, mu: -7, sigma: 2}", Distribution("log_normal", bounds=(-7, 2))),
        ("{distribution: beta, a: 2, b: 5}", Distribution("beta", bounds=(2, 5))),
        ("{distribution: q_uniform, min: 0, max: 9, q: 0.5}", Distribution("q_uniform", bounds=(0, 9), q=0.5)),
    ],
)
def test_a_parameter_is_read_as_its_distribution(tmp_path: Path, text: str, distribution: Distribution) -> None:
    assert parameter(tmp_path, text) == distribution


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    head = "name: mine\nproject: p\ndescription: d\nmethod: bayes\nrun_cap: 7\nmetric: {name: val/loss}\n"
    spec = read(
        tmp_path,
        f"{head}command: {COMMAND}\nparameters: {{optim.lr: {{value: 1}}, data.size: {{value: 64}}}}",
        "model=resnet18",
    )
    assert (spec.name, spec.method, spec.run_cap) == ("mine", "bayes", 7)
    assert (spec.metric, spec.goal) == ("val/loss", "minimize")  # W&B's default
    assert list(spec.parameters) == ["optim.lr", "data.size"]
    assert spec.fixed == ("model=resnet50", "seed=3", "model=resnet18")


def test_a_file_without_header_is_named_by_its_stem_and_maximises_accuracy(tmp_path: Path) -> None:
    spec = read(tmp_path, lr("{value: 1}", GRID))
    assert (spec.name, spec.metric, spec.goal) == ("s", "val/acc_best", "maximize")
    assert (spec.fixed, spec.run_cap) == ((), None)


BASE: dict[str, Any] = {"method": "random", "run_cap": 3, "parameters": {"optim.lr": {"values": [0.1, 0.2]}}}


def test_shipped_sweeps_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).parents[2] / "sweeps" / "local.yaml"
    for name in ("local", "local.yaml", "sweeps/local", "sweeps/local.yaml"):
        assert find_sweep(name).samefile(shipped)
    Path("local.yaml").write_text("mine")
    assert find_sweep("local.yaml") == Path("local.yaml")  # a file that is here comes first


@pytest.mark.parametrize("name", ["lcal", "elsewhere/local.yaml", "/local.yaml", "../sweeps/local", "", "."])
def test_no_such_sweep_is_refused_with_those_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(Refused, match=rf"^{re.escape(name)}: there is no such sweep file; shipped ones: .*local\.yaml"):
        find_sweep(name)


NUMBERS = [1e-05, 3e10, 0.1, 1.0, -0.5, 1e22, 5e-324, 0, 12, -3, 10**20, True, False, None]
LISTS = [[], [256, 128], [[1], [2]], [0.5, True], ["a", "b"]]
WORDS = ["plain", "all", "IMAGENET1K_V1", "a/b", "~/x", "a:b", "a b", "a=b", "=", "a,b", "[a]", "[", "{a: 1}", "(x)"]
TEXTS = ["", " ", " lead", "trail ", "'", '"', 'it\'s "x"', "''", "ünï 猫", "a#b", "50%", "@a", "-", "a;b", "!&|", "$x"]
LOOKALIKES = ["null", "NULL", "true", "1e-3", "12", "-1", "1.5", "1.", "1_000", "inf", "nan", "None", "False"]
SLASHES = ["a\\b", "\\", "a\\", "\\'", "a\\\\'b", "c:\\dir\\", [None, "null", "a\\b"]]
HYDRAS = ["${x}", "${oc.env:HOME}", "choice(a,b)", "a\nb", "\t", "\r\n"]


@pytest.mark.parametrize("value", [*NUMBERS, *LISTS, *WORDS, *TEXTS, *LOOKALIKES, *SLASHES, *HYDRAS], ids=repr)
def test_an_override_is_read_back_as_the_value_it_was(value: Any) -> None:
    found = override_values([override("some.key", value)])["some.key"]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, list):
        assert [type(item) for item in found] == [type(item) for item in value]


def test_keys_of_wandbs_schema_that_decide_no_trial_change_nothing(tmp_path: Path) -> None:
    plain = "method: random\nrun_cap: 3\nparameters: {optim.lr: {value: 0.1}}\n"
    header = "apiVersion: v1\nkind: sweep\ncontroller: {type: local}\ndescription: d\n"
    metric = "metric: {name: val/acc_best, goal: maximize, impute: worst, impute_while_running: latest}\n"
    assert read(tmp_path, header + metric + plain) == read(tmp_path, plain)


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("{min: 0, max: 0.1}", Distribution("uniform", bounds=(0, 0.1))),
        ("{min: 0.5, max: 1}", Distribution("uniform", bounds=(0.5, 1))),
        (
            "{values: [1, 2], probabilities: [0.25, 0.75], distribution: categorical_w_probabilities}",
            Distribution("categorical", (1.0, 2.0), (0.25, 0.75)),
        ),
        ("{distribution: inv_log_uniform, min: 2, max: 9}", Distribution("inv_log_uniform", bounds=(2, 9))),
        ("{distribution: log_uniform, min: -9, max: 0}", Distribution("log_uniform", bounds=(-9, 0))),
    ],
)
def test_what_wandbs_schema_allows_is_read_as_wandb_means_it(
    tmp_path: Path, text: str, distribution: Distribution
) -> None:
    assert parameter(tmp_path, text) == distribution


def test_logarithms_are_for_settings_that_may_be_large(tmp_path: Path) -> None:
    entry = "{distribution: q_log_uniform, min: 2, max: 5, q: 8}"
    spec = read(tmp_path, f"{{method: random, run_cap: 3, parameters: {{data.batch_size: {entry}}}}}")
    assert spec.parameters["data.batch_size"].kind == "q_log_uniform"


def test_hyperband_with_a_first_band_does_not_look_at_s(tmp_path: Path) -> None:
    stop = "early_terminate: {type: hyperband, min_iter: 3, s: 2}"
    spec = read(tmp_path, f"{{method: grid, {stop}, parameters: {{seed: {{value: 1}}}}}}")
    assert isinstance(spec.stopping, Hyperband)
    assert spec.stopping.bands[:3] == (3, 9, 27)


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_every_key_of_wandbs_schema_is_read_ignored_or_refused_with_what_to_do(tmp_path: Path) -> None:
    from sweeps.config.schema import sweep_config_jsonschema as schema

    assert set(schema["properties"]) == {*_READ, *_IGNORED, *_ELSEWHERE}
    assert set(schema["definitions"]["metric"]["properties"]) == _METRIC
    assert set(schema["definitions"]["hyperband_stopping"]["properties"]) == set(_KEYS)
    kinds = [entry["properties"]["distribution"]["enum"] for entry in _entries(schema) if "properties" in entry]
    for (kind,) in kinds:
        entry = {"distribution": kind, **EXAMPLES.get(kind, {"min": 0.5, "max": 1.5})}
        (tmp_path / "s.yaml").write_text(
            yaml.safe_dump({"method": "random", "run_cap": 1, "parameters": {"augment.rotate": entry}})
        )
        assert read_sweep(tmp_path / "s.yaml").parameters["augment.rotate"].kind in (kind, "categorical")


EXAMPLES: dict[str, dict[str, Any]] = {
    "constant": {"value": 1},
    "categorical": {"values": [1, 2]},
    "categorical_w_probabilities": {"values": [1, 2], "probabilities": [0.5, 0.5]},
    "int_uniform": {"min": 1, "max": 2},
    **{kind: {"mu": 1.0, "sigma": 1.0} for kind in ("normal", "log_normal", "q_normal", "q_log_normal")},
    **{kind: {"a": 2, "b": 5} for kind in ("beta", "q_beta")},
}


def _entries(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The definitions of every parameter with a distribution."""
    definitions = [value for name, value in schema["definitions"].items() if name.startswith("param_")]
    flat = [inner for definition in definitions for inner in definition.get("anyOf", [definition])]
    return [entry for entry in flat if "distribution" in entry.get("properties", {})]


def test_a_file_for_the_sweep_scheduler_is_read_and_what_is_not_done_is_said(tmp_path: Path) -> None:
    spec = read(
        tmp_path,
        "{method: custom, run_cap: 9, scheduler: {engine: optuna, source: x.py}, parameters: {seed: {values: [1, 2]}},"
        " metrics: [{name: val/acc_best, goal: maximize}, {name: val/loss, goal: minimize}],"
        ' command: ["${env}", "${interpreter}", "-m", finetune.train, model=resnet50, "${args_json_file}"]}',
    )
    assert (spec.method, spec.metric, spec.goal, spec.fixed) == (
        "bayes",
        "val/acc_best",
        "maximize",
        ("model=resnet50",),
    )
    assert spec.read_otherwise == (
        "scheduler: `finetune sweep` proposes the trials itself",
        "method custom: read as bayes",
        "metrics: val/acc_best is optimised; val/loss stands in the records alone",
    )
