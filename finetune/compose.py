"""From command-line overrides to a checked config; what is wrong is said in one sentence. Imports no torch."""

import difflib
import functools
import importlib.util
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetune.config import NOT_MEANINGFUL, PLACES, Config, flat, freeze_depth_number, key_of, leaves, network_defaults
from finetune.errors import Refused, nearest


def shipped(folder: str) -> Path:
    """The folder `conf` or `sweeps` that came with this package: inside it when installed, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


@functools.cache
def register() -> None:
    """Make the schema and the resolver of a run's folder known to Hydra; calling it again does nothing."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("trial_key", lambda *, _root_: _key_while_composing(_root_), replace=True)


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose and check the config of `python -m finetune.train OVERRIDES`.

    Raises:
        Refused: an override that is not in the schema, of the wrong type or out of range, naming key and remedy.
    """
    register()
    refuse_bare_words(overrides)
    refuse_reach(overrides)
    with initialize_config_dir(str(shipped("conf").resolve()), version_base="1.3"):
        try:
            return checked(compose("config", as_overrides(overrides)))
        except RecursionError as error:
            raise Refused("an override is nested too deeply; give plain values, or lists of them") from error
        except (HydraException, OmegaConfBaseException, ValueError, ArithmeticError) as error:
            raise explain(error, overrides) from error


def checked(cfg: DictConfig) -> Config:
    """The composed config as dataclasses, every value inside its range.

    Raises:
        Refused: naming the first key whose value is not allowed, and what is.
    """
    unknown = sorted(_flat_mapping(cast(dict[str, Any], OmegaConf.to_container(cfg))).keys() - flat(Config()).keys())
    if unknown:
        raise Refused(no_such_key(unknown[0]))

    try:
        config = cast(Config, OmegaConf.to_object(cfg))
    except OmegaConfBaseException as error:
        raise explain(error, ()) from error
    for key, value, setting in leaves(config):
        _check_value(key, value, setting.metadata)

    _check_class_weights(config.data.class_weights)
    _check_logger(config.logger.name)

    for key, value in network_defaults(flat(config)).items():
        group, _, name = key.partition(".")
        setattr(getattr(config, group), name, value)

    depth = config.model.freeze_depth
    in_shares = config.model.freeze_unit == "share"
    try:
        freeze_depth_number(depth)
    except ValueError as error:
        raise Refused(f"model.freeze_depth={depth!r} is not a depth; give a whole number or all") from error
    if isinstance(depth, float) and not in_shares:
        raise Refused(
            f"model.freeze_depth={depth} is not a depth in {config.model.freeze_unit}s; give a whole number or all, "
            "or set model.freeze_unit=share"
        )
    if config.model.weights == "none" and depth != 0:
        raise Refused(
            f"model.weights=none with model.freeze_depth={depth} would freeze random layers; "
            "set model.freeze_depth=0 or name the weights"
        )
    window = config.model.train_units
    if window is not None and depth != "all":
        raise Refused(
            f"model.train_units={window} with model.freeze_depth={depth}: the window itself says what is frozen; "
            "leave model.freeze_depth at all"
        )
    if window is not None and (len(window) != 2 or window[0] >= window[1] or config.model.freeze_unit == "share"):
        raise Refused(
            f"model.train_units={window} is no window; give the first unit that trains and the one after the last, "
            "as in [4,8], in blocks, stages, layers or tensors (model.freeze_unit)"
        )
    if config.model.head.init == "probe" and (config.model.weights == "none" or config.model.rest == "scratch"):
        cause = "model.weights=none" if config.model.weights == "none" else "model.rest=scratch"
        raise Refused(
            f"model.head.init=probe with {cause} would fit the head to features of random layers; set "
            "model.head.init=random, or start from pretrained weights"
        )
    if config.trainer.refit and config.trainer.patience is not None:
        raise Refused(
            f"trainer.patience={config.trainer.patience} stops by {config.trainer.metric}, which says nothing with "
            "trainer.refit=true; set trainer.patience=null"
        )
    return config


def refuse_reach(overrides: Sequence[str]) -> None:
    """Let overrides set settings, and nothing else: sweep files come from others.

    Raises:
        Refused: one that names code (Hydra's own settings can), a file outside `conf`, or a secret of the environment.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.lstrip("+~")
        if key.startswith("~"):
            raise Refused(f"{override}: a setting cannot be removed; give it a value, such as {name}=null")
        if re.split(r"[./@]", name)[0] == "hydra":
            raise Refused(f"{override}: Hydra's own settings can name code to run and are not accepted; remove it")

        options = _options_of(name)
        if options and value.strip("'\"") not in options:
            raise Refused(f"{override}: conf/{name} has no {value!r}; {nearest(value, options)}")

        for variable in re.findall(r"oc\.env:([^,}]*)", value):
            if not re.fullmatch(r"\w+", variable) or re.search("KEY|TOKEN|SECRET|PASS", variable.upper()):
                raise Refused(
                    f"{override}: {variable} may be a secret, which would end up in records; give the value itself"
                )


def refuse_bare_words(overrides: Sequence[str]) -> None:
    """Make sure that each override has a key and a value.

    Raises:
        Refused: one has not; the message says what to write instead.
    """
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise Refused(_no_override(override))


def _no_override(word: str) -> str:
    """What to write instead of a word without a key, which mostly names the images."""
    if os.path.isdir(word):  # noqa: PTH112 (`Path.is_dir` raises where a word is too long for a name)
        key = "data.root"
    elif Path(word).suffix.lower() in (".csv", ".tsv"):
        key = "data.csv"
    else:
        return f"{word} is no setting; settings are given as KEY=VALUE, such as optim.lr=0.01"
    return f"{word} is no setting; did you mean {shlex.quote(f'{key}={word}')}?"


def _options_of(group: str) -> set[str]:
    """What a group of `conf` can be set to; empty where there is no such group."""
    if not re.fullmatch(r"\w+", group):  # `../x` would look outside of it
        return set()

    folder = shipped("conf") / group
    return {file.stem for file in folder.glob("*.yaml")} if folder.is_dir() else set()


def override(key: str, value: Any) -> str:
    """`key=value` as Hydra reads it back with the value's type; the same text that W&B's agent passes where it can.

    >>> override("optim.lr", 0.01), override("data.root", "a, b")
    ('optim.lr=0.01', "data.root='a, b'")
    """
    return f"{key}={_spelled(value)}"


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line as Hydra's overrides.

    W&B's agent writes values as Python does, so None becomes null, and text that Hydra's grammar would misread is
    quoted; the `_wandb` argument of a requeued run is left out.
    """
    settings = flat(Config())
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "_wandb":
            continue

        if key in settings and value == "None":
            overrides.append(f"{key}=null")
        elif key in settings and (_is_windows_share(key, value) or not _is_read(argument)):
            overrides.append(f"{key}={_quoted(value)}")
        else:
            overrides.append(argument)
    return overrides


def _is_windows_share(key: str, value: str) -> bool:
    """Whether it is a place that begins with two backslashes, of which Hydra would drop one."""
    return key in PLACES and value.startswith("\\\\")


def override_values(overrides: Sequence[str]) -> Mapping[str, Any]:
    """Key and value of each override as Hydra's grammar reads them, once they are spelt for it."""
    parsed = OverridesParser.create().parse_overrides(as_overrides(overrides))
    return {override.get_key_element().lstrip("+~"): override.value() for override in parsed}


def explain(error: Exception, overrides: Sequence[str]) -> Refused:
    """One sentence for what Hydra says in several, with the nearest key that exists."""
    message = " ".join(str(error).partition("See https")[0].split())
    if error.__cause__ is not None and message.startswith("Error merging override"):
        reason = str(error.__cause__).strip().splitlines()[0]
        return Refused(f"{message.removeprefix('Error merging override ')}: {reason[:1].lower()}{reason[1:]}")

    bare = re.match("Error parsing override '([^'=]*)' ", message)
    if bare:
        return Refused(_no_override(bare[1]))

    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key not in known_keys() and not key.startswith("hydra"):
            return Refused(f"{override}: {no_such_key(key)}")
    return Refused(message)


def known_keys() -> set[str]:
    """What can stand before the `=` of an override: dotted keys and groups."""
    groups = {group.name for group in shipped("conf").iterdir() if group.is_dir()}
    return {*flat(Config()), *groups - {"launcher"}}


def no_such_key(key: str) -> str:
    """One sentence with the nearest key there is."""
    in_group = [name for name in flat(Config()) if name.startswith(f"{key}.")]
    if in_group:
        return f"{key!r} is a group of keys; give one of its keys, such as {in_group[0]}"

    known = sorted(name for name in known_keys() if "." in name or "." not in key)
    closest = max(known, key=lambda name: _likeness(key, name))
    if _likeness(key, closest) >= 0.6:
        return f"there is no key {key!r}; did you mean {closest}?"
    return f"there is no key {key!r}; `python -m finetune.train --cfg job` lists them all"


def _likeness(key: str, name: str) -> float:
    """How alike two keys are, or their last parts where those are more alike: 0 to 1."""
    last_parts = key.rpartition(".")[2], name.rpartition(".")[2]
    return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in ((key, name), last_parts))


def _check_value(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    choices = limits.get("choices")
    if choices and value not in choices:
        raise Refused(f"{key}={value} is not known; {nearest(str(value), choices)}")

    low, high, above = (limits.get(bound) for bound in ("low", "high", "above"))
    for number in value if isinstance(value, list) else [value]:
        if number is None or isinstance(number, str) or number == limits.get("unset", math.nan):
            continue

        inside = (
            math.isfinite(number)
            and (low is None or number >= low)
            and (high is None or number <= high)
            and (above is None or number > above)
        )
        if not inside:
            bounds: list[tuple[str, float | None]] = [("at least", low), ("above", above), ("at most", high)]
            allowed = " and ".join(f"{phrase} {bound:g}" for phrase, bound in bounds if bound is not None)
            raise Refused(f"{key}={number} is out of range; it must be {allowed or 'a finite number'}")


_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}
"""Which packages a logger needs one of."""


def _check_logger(name: str) -> None:
    packages = _PACKAGES.get(name, ())
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise Refused(f"logger={name} needs a package that is not installed; pip install {packages[0]}")


def _check_class_weights(value: Any) -> None:
    if value in ("none", "balanced"):
        return
    weights = value if isinstance(value, list) else []
    are_numbers = all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights)
    if not weights or not are_numbers or not all(0 < weight < math.inf for weight in weights):
        raise Refused(
            f"data.class_weights={value} is not known; give none, balanced, or a list of numbers above 0, one a class"
        )


def _spelled(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(_spelled, value))}]"
    if isinstance(value, str) and not _is_read(f"x={value}", value):
        return _quoted(value)
    return str(value)


def _quoted(text: str) -> str:
    """Hydra's quoting: backslashes count only before a quote."""
    doubled = re.sub(r"\\+(?='|\Z)", lambda match: match[0] * 2, text)
    return "'" + doubled.replace("'", "\\'") + "'"


@functools.lru_cache(maxsize=4096)  # a report spells the few values of a thousand trials
def _is_read(override: str, text: str | None = None) -> bool:
    """Whether Hydra reads `override` as one value, and as exactly `text` where that is given."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return not parsed.is_sweep_override() and (text is None or parsed.value() == text)


def _key_while_composing(root: DictConfig) -> str:
    groups = [str(group) for group in root if group not in NOT_MEANINGFUL]
    settings = OmegaConf.to_container(OmegaConf.masked_copy(root, groups), resolve=True)  # `out` would ask for the key
    try:
        return key_of(_flat_mapping(cast(dict[str, Any], settings)))
    except ValueError:  # an infinite setting, which `checked` will refuse by name
        return "invalid"


def _flat_mapping(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            settings |= _flat_mapping(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = value
    return settings
