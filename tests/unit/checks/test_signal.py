import numpy as np
import pytest
import soxr

from voiceflow.checks.signal import band, clipped, dropout_s, low_band_share
from voiceflow.turns import Turn

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).normal(0.0, 0.1, 20 * RATE_HZ).astype(np.float32)


def test_a_wall_in_the_spectrum_is_found_where_it_is(noise):
    assert band(noise, RATE_HZ).edge_db == 0.0
    low = soxr.resample(soxr.resample(noise, RATE_HZ, 8_000), 8_000, RATE_HZ)
    found = band(low, RATE_HZ)
    assert found.bandwidth_share == pytest.approx(0.5, abs=0.05)
    assert found.edge_db > 40.0


def test_dull_voices_are_no_low_rate(noise):
    """Vowels end like a wall at 2.5 kHz, but an "s" now and then lies above it; at a lower rate it could not."""
    vowels = soxr.resample(soxr.resample(noise, RATE_HZ, 5_000), 5_000, RATE_HZ)
    hiss = np.diff(noise, n=2, append=[0.0, 0.0]).astype(np.float32)
    is_hiss = np.arange(len(noise)) // 1600 % 20 == 7
    dull = np.where(is_hiss, hiss, vowels)
    assert band(vowels, RATE_HZ).bandwidth_share < 0.4
    assert band(dull, RATE_HZ).bandwidth_share == 1.0
    low = soxr.resample(soxr.resample(dull, RATE_HZ, 8_000), 8_000, RATE_HZ)
    assert band(np.round(low * 32767) / np.float32(32768), RATE_HZ).bandwidth_share < 0.6


def test_a_telephone_falls_off_gently_and_is_no_wall(noise):
    from voiceflow.simulation.acoustics import telephone_band

    assert band(telephone_band(noise), RATE_HZ).bandwidth_share == 1.0


def test_peaks_cut_flat_are_found_after_they_were_made_quieter(noise):
    assert clipped(noise[:, None], RATE_HZ) == (0.0, 0.0)
    flat = np.clip(np.repeat(noise, 4)[: len(noise)], -0.2, 0.2) * np.float32(0.3)
    full_scale, runs_per_minute = clipped(flat[:, None], RATE_HZ)
    assert full_scale == 0.0
    assert runs_per_minute > 100.0


def test_zeros_count_inside_turns_only(noise):
    lost = noise.copy()
    lost[5 * RATE_HZ : 6 * RATE_HZ] = 0.0
    assert dropout_s(lost, RATE_HZ, [Turn(4.0, 7.0, "a")]) == pytest.approx(1.0)
    assert dropout_s(lost, RATE_HZ, [Turn(0.0, 5.05, "a"), Turn(5.95, 8.0, "b")]) == 0.0


def test_what_16_bits_cannot_tell_is_not_lost(noise):
    """Words that fade into silence leave exact zeros between them; those that are cut off were lost."""
    fades = np.abs(np.sin(np.pi * np.arange(len(noise)) / (2 * RATE_HZ))) ** 12 * np.float32(0.05)
    quiet = np.round(noise * fades * 32767).astype(np.int16).astype(np.float32) / np.float32(32768)
    turns = [Turn(0.0, 20.0, "a")]
    assert np.mean(quiet == 0.0) > 0.3
    assert dropout_s(quiet, RATE_HZ, turns) == 0.0
    quiet[int(4.9 * RATE_HZ) : int(5.6 * RATE_HZ)] = 0.0  # a word has its loudest at 5 s
    assert dropout_s(quiet, RATE_HZ, turns) == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_short_recordings_have_nothing_to_say(length):
    samples = np.zeros(length, np.float32)
    assert band(samples, RATE_HZ).bandwidth_share == 1.0
    assert dropout_s(samples, RATE_HZ, [Turn(0.0, 1.0, "a")]) >= 0.0


def test_what_rumbles_now_and_then_is_no_high_rate():
    """Four cars pass in a minute in which somebody whispers; hum all the time is told."""
    rng = np.random.default_rng(0)
    time_s = np.arange(60 * 16_000) / 16_000
    whisper = np.diff(rng.normal(0.0, 0.01, len(time_s) + 1))
    turns = [Turn(10.0 * number, 10.0 * number + 7.0, "a") for number in range(6)]
    speaks = np.zeros(len(time_s))
    for turn in turns:
        speaks[int(turn.start_s * 16_000) : int(turn.end_s * 16_000)] = 1.0
    hum = 0.05 * np.sin(2.0 * np.pi * 45.0 * time_s)
    cars = hum * ((time_s % 20.0 > 2.0) & (time_s % 20.0 < 4.0))
    assert low_band_share(whisper * speaks + cars, 16_000, turns) < 0.1
    assert low_band_share((whisper + hum) * speaks, 16_000, turns) > 0.9
