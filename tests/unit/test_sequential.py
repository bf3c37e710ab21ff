import json

import numpy as np
import pytest

from voiceflow.sequential import Arm, Wager, thompson_shares

DRAWS, LOOKS = 300, 400


def ever_won(wager, values, alpha):
    for value in values:
        wager.see(value)
        if wager.is_won(alpha):
            return True
    return False


@pytest.mark.parametrize("side", ["above", "below"])
def test_looking_all_the_time_raises_few_false_alarms(side):
    """At the bound itself, the worst of the null, over many looks: at most alpha."""
    alarms = 0
    for seed in range(DRAWS):
        values = np.random.default_rng(seed).binomial(1, 0.1, LOOKS).astype(float)
        alarms += ever_won(Wager(0.1, side), values, 0.05)
    assert alarms <= 0.05 * DRAWS + 3 * np.sqrt(0.05 * 0.95 * DRAWS)


def test_what_is_clearly_worse_is_found_in_a_few_looks():
    rng = np.random.default_rng(0)
    wager = Wager(0.05, "above", low=-1.0)
    looks = next(n for n, value in enumerate(rng.uniform(0.6, 1.0, 50), 1) if wager.see(value) or wager.is_won(0.01))
    assert looks <= 14


def test_what_is_as_good_is_proved_not_to_be_worse_in_minutes():
    rng = np.random.default_rng(0)
    wager = Wager(0.1, "below", low=-1.0)
    values = rng.normal(0.0, 0.02, 100)
    assert next(n for n, value in enumerate(values, 1) if wager.see(value) or wager.is_won(0.05)) <= 60


def test_dependence_within_a_look_does_not_matter():
    """Bursts: everything in a look is late, or nothing; the mean is what counts."""
    alarms = sum(
        ever_won(Wager(0.2, "above"), (np.random.default_rng(seed).random(LOOKS) < 0.2).astype(float), 0.05)
        for seed in range(DRAWS)
    )
    assert alarms <= 0.05 * DRAWS + 3 * np.sqrt(0.05 * 0.95 * DRAWS)


def test_a_wager_goes_on_where_it_was():
    first, second = Wager(0.3, "above"), Wager(0.3, "above")
    for value in (0.1, 0.9, 0.5):
        first.see(value)
    for value in (0.1, 0.9):
        second.see(value)
    second = Wager(**json.loads(json.dumps(second.as_dict())))
    second.see(0.5)
    assert second.capital == first.capital


def test_a_bound_outside_the_range_is_refused():
    with pytest.raises(ValueError, match="expected a bound between"):
        Wager(1.5, "above")


def test_thompson_gives_the_better_arm_nearly_all_and_the_other_its_floor():
    rng = np.random.default_rng(0)
    arms = {"champion": Arm(), "challenger": Arm()}
    for _ in range(400):
        arms["champion"].see(float(rng.binomial(1, 0.6)))
        arms["challenger"].see(float(rng.binomial(1, 0.8)))
    shares = thompson_shares(arms, seed=1, floor=0.05)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["challenger"] > 0.9
    assert shares["champion"] >= 0.05
    fresh = thompson_shares({"a": Arm(), "b": Arm()}, seed=1)
    assert 0.4 < fresh["a"] < 0.6
    with pytest.raises(ValueError, match="floor"):
        thompson_shares(arms, seed=1, floor=0.6)
