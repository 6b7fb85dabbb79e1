import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.compose import compose_config, override_values, shipped
from finetune.config import flat, trial_key
from finetune.errors import Refused, nearest


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1.0e-05", 1e-5),
        ("optim.lr=1e-05", 1e-5),
        ("optim.lr=3e+10", 3e10),
        ("optim.lr=1", 1.0),
        ("trainer.epochs=7", 7),
        ("trainer.patience=null", None),
        ("trainer.patience=3", 3),
        ("trainer.grad_clip=0.5", 0.5),
        ("trainer.precision=32", "32"),
        ("model.freeze_depth=9", 9),
        ("model.freeze_depth=all", "all"),
        ("model.head.hidden=[]", []),
        ("model.head.hidden=[256,128]", [256, 128]),
        ("model.head.hidden=[256, 128]", [256, 128]),
        ("data.root='a folder, with=signs'", "a folder, with=signs"),
        ("data.root=12", "12"),
        # as W&B's agent writes them
        ("trainer.patience=None", None),
        ("data.root=/a=b", "/a=b"),
        ("data.root=it's", "it's"),
        ("data.root=x{y", "x{y"),
        ("data.root=a,b", "a,b"),
        ("data.root=été", "été"),
        ("data.root=/two words/x", "/two words/x"),
    ],
)
def test_an_override_reaches_the_config_with_its_type(override: str, value: object) -> None:
    key = override.partition("=")[0]
    found = flat(compose_config([override]))[key]
    assert (found, type(found)) == (value, type(value))


def test_an_override_changes_nothing_else() -> None:
    before, after = flat(compose_config([])), flat(compose_config(["optim.lr=0.5"]))
    assert {key for key in before if before[key] != after[key]} == {"optim.lr", "out"}


def test_the_extra_word_of_a_requeued_run_is_accepted() -> None:
    extra = "_wandb={'desc': None}"
    assert trial_key(compose_config(["seed=1", extra])) == trial_key(compose_config(["seed=1"]))


REFUSED = {
    "optim.lr=inf": "optim.lr=inf is out of range; it must be above 0",
    "optim.lr=nan": "optim.lr=nan is out of range",
    "trainer.grad_clip=inf": "trainer.grad_clip=inf is out of range",
    "optim.lr=[1": "optim.lr='[1': value '[1' of type 'str' could not be converted to Float",
    "model=50": "model=50: conf/model has no '50'; choose from",
    "experiment=true": "experiment=true: conf/experiment has no 'true'",
    "optim.lrr=1": "optim.lrr=1: there is no key 'optim.lrr'; did you mean optim.lr?",
    "lr=1": "lr=1: there is no key 'lr'; did you mean optim.lr?",
    "head.hidden=256": "there is no key 'head.hidden'; did you mean model.head.hidden?",
    "dropout=0.1": "there is no key 'dropout'; did you mean model.head.dropout?",
    "data.roto=x": "data.roto=x: there is no key 'data.roto'; did you mean data.root?",
    "xyzzy=1": "xyzzy=1: there is no key 'xyzzy'; `python -m finetune.train --cfg job` lists them all",
    "+optim.lrr=1": "there is no key 'optim.lrr'; did you mean optim.lr?",
    "+xyzzy=1": "there is no key 'xyzzy'; `python -m finetune.train --cfg job` lists them all",
    "++model.head.hiden=[1]": "there is no key 'model.head.hiden'; did you mean model.head.hidden?",
    "optim.lr=abc": "optim.lr=abc: value 'abc' of type 'str' could not be converted to Float",
    "optim.lr=null": "optim.lr=null: field 'optim.lr' is not Optional",
    "trainer.epochs=1.5": "trainer.epochs=1.5: value '1.5' of type 'float' could not be converted to Integer",
    "seed=true": "seed=true: value 'True' of type 'bool' could not be converted to Integer",
    "augment.flip=true": "augment.flip=true: value 'True' of type 'bool' could not be converted to Float",
    "model.head.hidden=3": "model.head.hidden=3: invalid value assigned: int is not a ListConfig, list or tuple.",
    "model.head.hidden=[a]": "model.head.hidden=[a]: value 'a' of type 'str' could not be converted to Integer",
    "model.freeze_depth=1.5": "model.freeze_depth=1.5 is not a depth in blocks; give a whole number or all, or set",
    "optim.lr=0": "optim.lr=0.0 is out of range; it must be above 0",
    "optim.lr=-1": "optim.lr=-1.0 is out of range; it must be above 0",
    "seed=-1": "seed=-1 is out of range; it must be at least 0",
    "data.size=4000": "data.size=4000 is out of range; it must be at least 8 and at most 2048",
    "data.val_fraction=0": "data.val_fraction=0.0 is out of range; it must be above 0 and at most 0.9",
    "model.head.dropout=1": "model.head.dropout=1.0 is out of range; it must be at least 0 and at most 0.95",
    "model.head.hidden=[64,0]": "model.head.hidden=0 is out of range; it must be at least 1",
    "trainer.grad_clip=0": "trainer.grad_clip=0.0 is out of range; it must be above 0",
    "optim.name=adam": "optim.name=adam is not known; did you mean adamw?",
    "model.frozen_bn=evil": "model.frozen_bn=evil is not known; did you mean eval?",
    "data.resize=xyzzy": "data.resize=xyzzy is not known; choose from crop, pad, squash",
    "model.freeze_depth=al": "model.freeze_depth='al' is not a depth; give a whole number or all",
    "model.weights=none": "model.weights=none with model.freeze_depth=all would freeze random layers; set model.freez",
    "model=resnet51": "model=resnet51: conf/model has no 'resnet51'; did you mean resnet50?",
    "optim=xyzzy": "optim=xyzzy: conf/optim has no 'xyzzy'; choose from adamw, sgd",
    "experiment=first100": "experiment=first100: conf/experiment has no 'first100'; did you mean first_100?",
    "cache.dir=${oc.env:NOT_SET_ANYWHERE}": "Environment variable 'NOT_SET_ANYWHERE' not found",
    "data.root=${oc.env:NOT_SET_ANYWHERE}": "Environment variable 'NOT_SET_ANYWHERE' not found",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_composed_is_refused_in_one_sentence(override: str) -> None:
    with pytest.raises(Refused) as refusal:
        compose_config(["seed=1", override])
    assert REFUSED[override] in str(refusal.value)
    assert override.lstrip("+").partition("=")[0] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_stores_are_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", "/stores")
    assert compose_config([]).cache.dir == "/stores"
    assert compose_config(["cache.dir=${oc.env:FINETUNE_CACHE}/mine"]).cache.dir == "/stores/mine"
    monkeypatch.delenv("FINETUNE_CACHE")
    monkeypatch.setenv("HOME", "/home/ada")
    assert compose_config([]).cache.dir == "/home/ada/.cache/finetune"


@pytest.mark.parametrize("overrides", [[], ["optim.lr=1", "model.head.hidden=[3]"], ["data.workers=3", "data.root=x"]])
def test_the_folder_of_a_run_is_its_key(overrides: list[str]) -> None:
    config = compose_config(overrides)
    assert Path(config.out).name == trial_key(config)


def test_what_was_given_last_wins() -> None:
    assert compose_config(["optim.lr=1", "optim.lr=2"]).optim.lr == 2
    assert compose_config(["optim.weight_decay=1", "optim=sgd"]).optim.weight_decay == 1  # a key wins over its group
    assert compose_config(["experiment=first_100", "model.freeze_depth=3"]).model.freeze_depth == 3


def test_an_experiment_sets_several_groups() -> None:
    config = compose_config(["experiment=embedded"])
    assert (config.model.backbone, config.model.freeze_depth, config.data.root) == ("narrow_resnet50", 14, "shapes10")
    pretrained, scratch = (flat(compose_config([f"experiment=first_100{end}"])) for end in ("", "_scratch"))
    assert (pretrained["model.freeze_depth"], pretrained["model.freeze_unit"]) == (100, "tensor")
    differing = {key for key in pretrained if pretrained[key] != scratch[key]}
    assert differing == {"model.rest", "optim.lr", "trainer.epochs", "out"}


def test_override_values_are_read_as_hydra_reads_them() -> None:
    given = ["optim.lr=1e-05", "model=resnet50", "+a.b=[1,x]", "++c='12'", "trainer.patience=null", "d='a=b'"]
    assert override_values(given) == {
        "optim.lr": 1e-05,
        "model": "resnet50",
        "a.b": [1, "x"],
        "c": "12",
        "trainer.patience": None,
        "d": "a=b",
    }


@pytest.mark.parametrize(("name", "text"), [("adam", "did you mean adamw?"), ("xyz", "choose from adamw, sgd")])
def test_the_nearest_name_or_all_of_them(name: str, text: str) -> None:
    assert nearest(name, {"sgd", "adamw"}) == text


def test_conf_and_sweeps_are_found() -> None:
    assert (shipped("conf") / "config.yaml").is_file()
    assert list(shipped("sweeps").glob("*.yaml"))


def test_keys_of_trials_are_those_of_the_first_release_whatever_settings_came_later() -> None:
    """Sweeps that were begun before go on: what a setting does at its default was done before it was there."""
    assert trial_key(compose_config([])) == "469833e15aaf"
    assert (
        trial_key(compose_config(["data.root=/d", "model.freeze_depth=9", "optim.lr=0.01", "seed=3"])) == "93c05e19bcd8"
    )
    assert trial_key(compose_config(["data.val_dir=valid"])) != trial_key(compose_config([]))
    assert trial_key(compose_config(["data.links=refuse"])) == trial_key(compose_config([]))


def test_an_empty_home_is_not_the_root_folder() -> None:
    """As containers leave it: what we and the libraries keep is the account's, not the root folder's."""
    code = "from finetune.compose import compose_config; print(compose_config(['data.root=x']).cache.dir)"
    bare = {"HOME": "", "PATH": os.environ["PATH"]}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=bare,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/finetune"
