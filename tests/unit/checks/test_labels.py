from dataclasses import replace

import numpy as np
import pytest

from voiceflow.checks.labels import contrast_db, label_lag, true_units, wrong_channel
from voiceflow.checks.signal import levels_db
from voiceflow.turns import Turn

RATE_HZ = 16_000


def spoken(turns, duration_s, seed=1, floor=0.003):
    """Noise that is loud inside the turns."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0.0, floor, int(duration_s * RATE_HZ))
    for turn in turns:
        samples[int(turn.start_s * RATE_HZ) : int(turn.end_s * RATE_HZ)] *= 30.0
    return samples.astype(np.float32)


@pytest.fixture(scope="module")
def turns():
    rng = np.random.default_rng(2)
    starts = np.cumsum(rng.uniform(1.5, 5.0, 16))
    return [
        Turn(float(start), float(start + rng.uniform(0.5, 1.4)), "ab"[index % 2]) for index, start in enumerate(starts)
    ]


@pytest.mark.parametrize(
    ("unit", "per_s"), [("milliseconds", 1e3), ("samples at 16 kHz", 16e3), ("frames of 10 ms", 100)]
)
def test_units_are_recognised_and_put_right(turns, unit, per_s):
    scaled = [replace(turn, start_s=turn.start_s * per_s, end_s=turn.end_s * per_s) for turn in turns]
    found, told = true_units(scaled, 60.0)
    assert told == unit
    assert found[3].end_s == pytest.approx(turns[3].end_s)
    assert true_units(turns, 60.0) == (turns, "seconds")


@pytest.mark.parametrize("offset_s", [-1.0, -0.5, 0.5, 1.5])
def test_turns_that_are_late_or_early_are_measured(turns, offset_s):
    level = levels_db(spoken(turns, 60.0), RATE_HZ)
    moved = [replace(turn, start_s=turn.start_s + offset_s, end_s=turn.end_s + offset_s) for turn in turns]
    lag = label_lag(level, moved)
    assert lag.most_s == pytest.approx(-offset_s, abs=0.1)
    assert lag.gain > 0.1
    assert label_lag(level, turns).most_s == pytest.approx(0.0, abs=0.06)


def test_clocks_that_differ_give_a_lag_that_grows(turns):
    level = levels_db(spoken(turns, 60.0), RATE_HZ)
    slow = [replace(turn, start_s=turn.start_s * 1.02, end_s=turn.end_s * 1.02) for turn in turns]
    lag = label_lag(level, slow)
    assert lag.at_start_s == pytest.approx(0.0, abs=0.1)
    assert lag.at_end_s == pytest.approx(-1.2, abs=0.2)


@pytest.mark.parametrize("seed", [13, 19, 29, 52])
def test_one_turn_that_begins_too_late_is_no_lag_of_all(seed):
    """Speech was found half a second after a whisper began, and what follows hardly has a pause."""
    rng = np.random.default_rng(seed)
    starts_ends = [(1.0, 4.0), (9.0, 12.0), (25.0, 35.0), (28.0, 29.0), (36.0, 45.0), (45.1, 60.0)]
    right = [Turn(start_s, end_s, "ab"[index % 2]) for index, (start_s, end_s) in enumerate(starts_ends)]
    level_db_T = np.full(6000, -70.0)
    for turn in right:
        level_db_T[int(turn.start_s * 100) : int(turn.end_s * 100)] = -32.0
    level_db_T[3500:3600] = -40.0
    level_db_T[3800:] = np.repeat(rng.choice([-35.0, -58.0], 22), 100)
    level_db_T += rng.normal(0.0, 3.0, 6000)
    one_late = [replace(turn, start_s=25.6) if turn.start_s == 25.0 else turn for turn in right]
    assert label_lag(level_db_T, one_late).gain < 0.03
    all_late = [replace(turn, start_s=turn.start_s + 0.6, end_s=min(60.0, turn.end_s + 0.6)) for turn in right]
    assert label_lag(level_db_T, all_late).gain > 0.06


def test_channels_that_are_silent_cancel_or_belong_to_somebody_else(turns):
    left = spoken(turns, 60.0)
    mix_db = contrast_db(levels_db(left, RATE_HZ), turns)
    assert "silent" in wrong_channel(np.stack([left, left * 0], axis=1), RATE_HZ, turns, mix_db)
    assert "cancel" in wrong_channel(np.stack([left, -left], axis=1), RATE_HZ, turns, mix_db)
    others = [replace(turn, start_s=turn.end_s, end_s=turn.end_s + 0.6) for turn in turns]
    right = spoken(others, 60.0, seed=5) * np.float32(2.0)
    both = np.stack([left, right], axis=1)
    mix_db = contrast_db(levels_db(both.mean(axis=1), RATE_HZ), turns)
    assert "channel 0 alone" in wrong_channel(both, RATE_HZ, turns, min(mix_db, 5.0))
    assert "another channel" in wrong_channel(
        right[:, None], RATE_HZ, turns, contrast_db(levels_db(right, RATE_HZ), turns) - 5
    )
    assert wrong_channel(left[:, None], RATE_HZ, turns, 20.0) == ""


def test_levels_are_compared_with_pauses_near_by():
    """The second half is 20 dB louder, and has all the pauses but one."""
    level_db_T = np.full(6000, -60.0)
    level_db_T[3000:] += 20.0
    turns = [Turn(0.0, 29.5, "a")] + [Turn(30.0 + 3.0 * number, 31.5 + 3.0 * number, "a") for number in range(10)]
    for turn in turns:
        level_db_T[int(turn.start_s * 100) : int(turn.end_s * 100)] += 12.0
    assert contrast_db(level_db_T, turns) == pytest.approx(12.0)
    late = [turns[0]] + [Turn(turn.start_s + 1.5, turn.end_s + 1.5, "a") for turn in turns[1:]]
    assert contrast_db(level_db_T, late) < 0.0


def test_one_long_pause_full_of_sound_does_not_speak_for_a_recording():
    level_db_T = np.full(6000, -40.0)
    turns = [Turn(9.0 * number, 9.0 * number + 8.3, "a") for number in range(5)] + [Turn(50.0, 60.0, "a")]
    for turn in turns[:-1]:
        level_db_T[int(turn.end_s * 100) : int(turn.end_s * 100) + 70] = -55.0
    level_db_T[4470:5000] = -38.0
    assert contrast_db(level_db_T, turns) == pytest.approx(15.0)


def test_hardly_any_pause_tells_nothing():
    level_db_T = np.random.default_rng(0).normal(-50.0, 6.0, 2000)
    turns = [Turn(0.9 + 2.0 * number, 2.8 + 2.0 * number, "a") for number in range(9)] + [Turn(18.9, 20.0, "a")]
    assert contrast_db(level_db_T, turns) is None
    assert label_lag(level_db_T, turns) == (0.0, 0.0, 0.0)
