import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from finetune.sweep.distribution import BASES, DISTRIBUTIONS, Distribution

SHARES = [*np.linspace(0.0013, 0.9987, 96).tolist(), 1e-9, 1 - 1e-9]  # none where an integer ends
LOGS = (math.log(1e-5), math.log(0.1))

SCIPY = {
    "uniform": (Distribution("uniform", bounds=(-1.5, 4.0)), stats.uniform(-1.5, 5.5)),
    "log_uniform": (Distribution("log_uniform", bounds=LOGS), stats.loguniform(1e-5, 0.1)),
    "log_uniform_values": (Distribution("log_uniform_values", bounds=(1e-5, 0.1)), stats.loguniform(1e-5, 0.1)),
    "normal": (Distribution("normal", bounds=(2.0, 0.5)), stats.norm(2.0, 0.5)),
    "log_normal": (Distribution("log_normal", bounds=(2.0, 0.5)), stats.lognorm(0.5, scale=math.exp(2.0))),
    "beta": (Distribution("beta", bounds=(2.0, 5.0)), stats.beta(2.0, 5.0)),
    "int_uniform": (Distribution("int_uniform", bounds=(-2.0, 15.0)), stats.randint(-2, 16)),
}
CONTINUOUS = [name for name in SCIPY if name != "int_uniform"]
INVERSE = {
    "inv_log_uniform": (Distribution("inv_log_uniform", bounds=(1.0, 3.0)), math.exp(-3), math.exp(-1)),
    "inv_log_uniform_values": (Distribution("inv_log_uniform_values", bounds=(1e-4, 0.5)), 1e-4, 0.5),
}


@pytest.mark.parametrize("kind", SCIPY)
def test_at_is_scipys_quantile(kind: str) -> None:
    ours, theirs = SCIPY[kind]
    assert [ours.at(u) for u in SHARES] == pytest.approx([theirs.ppf(u) for u in SHARES], rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("q", [0.05, 0.25, 1, 3])
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_a_quantized_value_is_the_nearest_multiple_of_q(kind: str, q: float) -> None:
    smooth, theirs = SCIPY[kind]
    stepped = Distribution(f"q_{kind}", bounds=smooth.bounds, q=q)
    for u in SHARES:
        value = stepped.at(u)
        assert value / q == pytest.approx(round(value / q), abs=1e-9)
        assert abs(value - theirs.ppf(u)) <= q / 2 * (1 + 1e-6)
        assert type(value) is (int if q in (1, 3) else float)


def test_a_quantized_value_has_no_rounding_tail() -> None:
    tenths = Distribution("q_uniform", bounds=(0.0, 1.0), q=0.1)
    assert [tenths.at(u) for u in (0.0, 0.3, 0.6, 0.71)] == [0.0, 0.3, 0.6, 0.7]


@pytest.mark.parametrize("kind", INVERSE)
def test_the_inverse_logarithm_is_uniform_over_the_range(kind: str) -> None:
    distribution, low, high = INVERSE[kind]
    values = [distribution.at(u) for u in sorted(SHARES)]
    assert all(low <= value <= high for value in values)
    assert all(before < after for before, after in pairwise(values))
    assert values[0] == pytest.approx(low)
    assert values[-1] == pytest.approx(high)
    grid = np.linspace(0.005, 0.995, 100)
    inverse_logs = [math.log(1 / distribution.at(u)) for u in grid]
    assert np.diff(inverse_logs) == pytest.approx(-(math.log(high) - math.log(low)) * 0.01)


@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, math.nextafter(1, 0)])
@pytest.mark.parametrize("kind", [*SCIPY, *INVERSE])
def test_the_ends_are_finite_and_inside(kind: str, u: float) -> None:
    if kind in INVERSE:
        distribution, low, high = INVERSE[kind]
    else:
        distribution, theirs = SCIPY[kind]
        low, high = theirs.support()
    assert math.isfinite(distribution.at(u))
    assert low <= distribution.at(u) <= high


def test_int_uniform_has_every_integer_equally_often() -> None:
    counts = Counter(SCIPY["int_uniform"][0].at((i + 0.5) / 1800) for i in range(1800))
    assert counts == dict.fromkeys(range(-2, 16), 100)
    assert {type(value) for value in counts} == {int}


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [((), (250, 250, 250, 250)), ((0.1, 0.2, 0.3, 0.4), (100, 200, 300, 400)), ((0.5, 0, 0.5, 0), (500, 0, 500, 0))],
)
def test_values_come_as_often_as_their_probability(probabilities: tuple[float, ...], expected: tuple[int, ...]) -> None:
    values = ("a", [256], None, 1.5)
    distribution = Distribution("categorical", values, probabilities)
    drawn = [distribution.at((i + 0.5) / 1000) for i in range(1000)]
    assert tuple(sum(value == drawn_value for drawn_value in drawn) for value in values) == expected


def test_shares_a_hair_below_1_reach_the_last_value_and_a_share_of_0_is_never_drawn() -> None:
    assert Distribution("categorical", ("a", "b", "c"), (0.3333333,) * 3).at(math.nextafter(1, 0)) == "c"
    assert Distribution("categorical", ("a", "b"), (0.0, 1.0)).at(0.0) == "b"


@pytest.mark.parametrize(
    ("distribution", "choices"),
    [
        (Distribution("constant", (None,)), (None,)),
        (Distribution("categorical", ([], [256])), ([], [256])),
        (Distribution("int_uniform", bounds=(3.0, 6.0)), (3, 4, 5, 6)),
        (Distribution("q_uniform", bounds=(0.0, 1.0), q=0.25), (0.0, 0.25, 0.5, 0.75, 1.0)),
        (Distribution("q_uniform", bounds=(0.0, 0.3), q=0.1), (0.0, 0.1, 0.2, 0.3)),
        (Distribution("q_uniform", bounds=(10.0, 30.0), q=10), (10, 20, 30)),
        *((SCIPY[kind][0], None) for kind in CONTINUOUS),
    ],
)
def test_choices_are_every_value_where_they_can_be_listed(
    distribution: Distribution, choices: tuple[object, ...] | None
) -> None:
    assert distribution.choices == choices
    if choices is not None:
        drawn = [distribution.at(i / 1000) for i in range(1000)]
        assert {repr(value) for value in drawn} == {repr(value) for value in choices}


def test_every_distribution_of_the_schema_is_among_these() -> None:
    quantized = {f"q_{kind}" for kind in CONTINUOUS}
    assert {*SCIPY, *INVERSE, *quantized, "constant", "categorical"} == set(DISTRIBUTIONS)


@pytest.mark.filterwarnings("ignore")  # the package's own
@pytest.mark.parametrize("kind", [kind for kind in DISTRIBUTIONS if kind not in ("constant", "categorical")])
def test_values_are_those_of_wandbs_own_engine(kind: str) -> None:
    from sweeps.params import HyperParameter

    base = kind.removeprefix("q_")
    names = BASES.get(base, ("min", "max"))
    bounds = {"beta": (2.0, 3.0), "log_uniform": (-3.0, 2.0), "int_uniform": (1, 9)}.get(base, (0.1, 7.0))
    given = {"distribution": kind, **dict(zip(names, bounds, strict=True)), **({"q": 0.25} if kind != base else {})}
    theirs = HyperParameter("x", given)
    ours = Distribution(kind, bounds=bounds, q=0.25)
    for u in (0.003, 0.11, 0.37, 0.5001, 0.77, 0.998):
        assert ours.at(u) == pytest.approx(float(theirs.ppf(u)), rel=1e-6)
