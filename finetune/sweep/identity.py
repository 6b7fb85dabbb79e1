"""Which sweep is the same sweep: what its folder says of it, field by field. Imports no torch.

Folders outlive releases. So nothing here follows from the names of fields or from a `repr`: both may be changed by
whoever tidies the code, and would orphan the folders of everybody who upgrades.
"""

from collections.abc import Sequence
from typing import Any

from finetune.config import digest_of
from finetune.sweep.distribution import Distribution
from finetune.sweep.spec import SweepSpec
from finetune.sweep.stopping import Hyperband

_FORMER_RACE = {"z": 1.5}
"""What the option `--race` of the first release wrote. A race is how any sweep may explore now, and no part of what it
is, so such a folder is continued too."""
VERSION = 1
"""Of the mapping below. Another meaning of an entry needs another number, and code that still reads this one."""


def identity_of(spec: SweepSpec, seed: int, data: Sequence[str]) -> dict[str, Any]:
    """What `sweep.json` says of a sweep, besides its number of trials.

    Args:
        spec: The sweep.
        seed: The seed of its search.
        data: Digests of its images and weights.
    """
    return {
        "version": VERSION,
        "name": spec.name,
        "digest": spec_digest(spec),
        "seed": seed,
        "fixed": list(spec.fixed),
        "search": _search_text(spec),
        "space": {key: distribution.text for key, distribution in spec.parameters.items()},
        "data": list(data),
    }


def spec_digest(spec: SweepSpec) -> str:
    """Twelve hex digits that name the space, the search and the fixed overrides, and not the header or `run_cap`."""
    return _digest(spec, _stopping(spec.stopping))


def _digest(spec: SweepSpec, stopping: dict[str, Any] | None) -> str:
    space = {key: _distribution(distribution) for key, distribution in spec.parameters.items()}
    return digest_of([spec.method, spec.goal, spec.metric, space, list(spec.fixed), spec.target, stopping])


def without_race(old: dict[str, Any], spec: SweepSpec) -> dict[str, Any]:
    """What a folder says of itself, where it holds `spec` as a race of the first release: as if it were none.

    Raises:
        KeyError: `old` is no identity.
    """
    if old["digest"] != _digest(spec, _FORMER_RACE):
        return old
    return {**old, "digest": spec_digest(spec), "search": _search_text(spec)}


def _distribution(distribution: Distribution) -> dict[str, Any]:
    return {
        "kind": distribution.kind,
        "values": list(distribution.values),
        "probabilities": list(distribution.probabilities),
        "bounds": list(distribution.bounds),
        "q": distribution.q,
    }


def _stopping(rule: Hyperband | None) -> dict[str, Any] | None:
    if rule is None:
        return None
    return {
        "min_iter": rule.min_iter,
        "max_iter": rule.max_iter,
        "s": rule.s,
        "eta": rule.eta,
        "strict": rule.strict,
    }


def _search_text(spec: SweepSpec) -> str:
    """How the sweep searches, for people; a message compares it with that of another sweep."""
    numbers = _stopping(spec.stopping)
    stopping = "none"
    if numbers is not None:
        stopping = f"Hyperband({', '.join(f'{key}={value!r}' for key, value in numbers.items())})"
    return f"{spec.method}, {spec.goal} {spec.metric}, target {spec.target}, stopping {stopping}"


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first thing in which two identities differ, with both values; empty for the same sweep.

    Raises:
        KeyError, TypeError, AttributeError: `old` is no identity.
    """
    settings = "" if old["digest"] == new["digest"] else _changed_settings(old, new)
    if settings:
        return settings

    if old["seed"] != new["seed"]:
        return f"search seed was {old['seed']} and would now be {new['seed']}"

    before, now = set(old["data"]), set(new["data"])
    if not (before <= now or now <= before):  # more or fewer trials may be of more or fewer sizes and splits
        return f"data was {old['data']} and would now be {new['data']}"
    return ""


def _changed_settings(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs between two sweeps of other digests: a fixed setting, the search, or the space."""
    before, now = (dict(word.partition("=")[::2] for word in values["fixed"]) for values in (old, new))
    for key in dict.fromkeys([*before, *now]):
        was, would_be = before.get(key, "not given"), now.get(key, "not given")
        if was != would_be:
            return f"{key} was {was} and would now be {would_be}"

    for name, title in (("fixed", "list of fixed settings"), ("search", "search")):
        if old[name] != new[name]:
            return f"{title} was {old[name]} and would now be {new[name]}"

    for key in sorted(old["space"].keys() | new["space"]):
        was, would_be = (values["space"].get(key, "not swept") for values in (old, new))
        if was != would_be:
            return f"{key} was {was} and would now be {would_be}"

    return f"digest was {old['digest']} and would now be {new['digest']}"
