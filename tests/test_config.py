import json
import re
import types
import typing
from typing import Any

import pytest

from finetune.config import NOT_MEANINGFUL, Config, digest_of, flat, key_of, leaves, trial_key, typed

LEAVES = {key: (value, field) for key, value, field in leaves(Config())}
NO_RANGE = {"model.freeze_depth"}  # its range is the backbone's, and `all` is allowed


def altered(key: str) -> Config:
    """The default config with another value at one key; it need not be an allowed one."""
    config = Config()
    *groups, name = key.split(".")
    owner: Any = config
    for group in groups:
        owner = getattr(owner, group)
    value = getattr(owner, name)
    other = {str: f"{value}x", list: [7], type(None): 7}.get(type(value))
    setattr(owner, name, value + 1 if other is None else other)
    return config


def is_meaningful(key: str) -> bool:
    return not any(key == skip or key.startswith(f"{skip}.") for skip in NOT_MEANINGFUL)


def kinds(annotation: Any) -> set[type]:
    """The types an annotation allows: {int} of int | None and of list[int]."""
    arguments = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType) or arguments:
        return set().union(*(kinds(argument) for argument in arguments))
    return {annotation} - {type(None)}


def test_equal_settings_have_one_key() -> None:
    assert trial_key(Config()) == trial_key(Config()) == key_of(flat(Config()))
    assert re.fullmatch("[0-9a-f]{12}", trial_key(Config()))


@pytest.mark.parametrize("key", [key for key in LEAVES if is_meaningful(key)])
def test_the_key_changes_with_every_meaningful_setting(key: str) -> None:
    assert trial_key(altered(key)) != trial_key(Config())


@pytest.mark.parametrize("key", [key for key in LEAVES if not is_meaningful(key)])
def test_the_key_does_not_say_where_or_how_fast_a_run_happens(key: str) -> None:
    assert flat(altered(key)) != flat(Config())
    assert trial_key(altered(key)) == trial_key(Config())


@pytest.mark.parametrize("skip", NOT_MEANINGFUL)
def test_what_is_not_meaningful_exists(skip: str) -> None:
    assert any(key == skip or key.startswith(f"{skip}.") for key in LEAVES)


def test_places_loggers_and_threads_are_not_meaningful_and_all_of_the_network_is() -> None:
    places = ("out", "cache.dir", "logger.name", "logger.project")
    without = (*places, "data.workers", "trainer.graphs", "trainer.save_every")
    assert not any(map(is_meaningful, without))
    groups = ("seed", "model.", "augment.", "optim.", "trainer.")
    assert all(is_meaningful(key) for key in LEAVES if key.startswith(groups) and key not in without)


def test_different_settings_have_different_keys() -> None:
    keys = [trial_key(altered(key)) for key in LEAVES if is_meaningful(key)]
    assert len(set(keys)) == len(keys)


def test_flat_names_every_setting_by_its_dotted_key() -> None:
    config = Config()
    config.model.head.hidden = [256, 128]
    config.optim.lr = 0.5
    settings = flat(config)
    assert settings["seed"] == 0
    assert settings["optim.lr"] == 0.5
    assert settings["model.head.hidden"] == [256, 128]
    assert not {"model", "model.head", "optim", "lr"} & settings.keys()
    assert json.loads(json.dumps(settings)) == settings
    assert [key for key, value in settings.items() if value != flat(Config())[key]] == ["model.head.hidden", "optim.lr"]


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": {"c": 2, "d": 3}}) == digest_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert digest_of({"a": 1}) != digest_of({"a": "1"})


def test_a_digest_of_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of({"lr": float("nan")})


@pytest.mark.parametrize("key", [k for k, (_, at) in LEAVES.items() if kinds(at.type) & {int, float}])
def test_every_number_has_a_range_and_a_default_inside(key: str) -> None:
    if key in NO_RANGE:
        assert LEAVES[key][0] == "all"
        return
    value, at = LEAVES[key]
    low, high, above = (at.metadata.get(bound) for bound in ("low", "high", "above"))
    assert low is not None or above is not None
    for number in value if isinstance(value, list) else [value]:
        if number is not None and number != at.metadata.get("unset"):
            assert low is None or number >= low
            assert above is None or number > above
            assert high is None or number <= high


@pytest.mark.parametrize("key", [key for key, (_, at) in LEAVES.items() if "choices" in at.metadata])
def test_every_choice_has_a_default_among_its_choices(key: str) -> None:
    value, at = LEAVES[key]
    assert value in at.metadata["choices"]
    assert len(set(at.metadata["choices"])) == len(at.metadata["choices"]) > 1


@pytest.mark.parametrize(
    ("key", "value", "held"),
    [
        ("optim.lr", 1, 1.0),
        ("optim.lr", "0.5", 0.5),
        ("trainer.grad_clip", 2, 2.0),
        ("trainer.precision", 32, "32"),
        ("trainer.patience", None, None),
        ("trainer.epochs", 3, 3),
        ("model.head.hidden", [256], [256]),
        ("model.freeze_depth", "all", "all"),
        ("model.freeze_depth", 3, 3),
    ],
)
def test_a_value_is_held_with_the_type_of_its_setting(key: str, value: Any, held: Any) -> None:
    assert (typed(key, value), type(typed(key, value))) == (held, type(held))
