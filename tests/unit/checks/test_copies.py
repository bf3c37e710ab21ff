import numpy as np
import pytest

from voiceflow.checks.fingerprints import fingerprint, same_sounds, spoken_words
from voiceflow.turns import Turn

RATE_HZ = 16_000


def sound(seed, length_s=20):
    """Noise whose bands come and go, as speech does."""
    import scipy.signal

    rng = np.random.default_rng(seed)
    samples = np.zeros(length_s * RATE_HZ)
    for low_hz in (300, 500, 800, 1200):
        band = scipy.signal.butter(2, [low_hz, 1.6 * low_hz], "band", fs=RATE_HZ, output="sos")
        swell = np.interp(np.arange(len(samples)) / RATE_HZ * 5, np.arange(5 * length_s), rng.random(5 * length_s))
        samples += scipy.signal.sosfilt(band, rng.standard_normal(len(samples))) * swell**2
    return (samples / np.abs(samples).max()).astype(np.float32)


def test_copies_are_found_though_quieter_later_and_noisier():
    rng = np.random.default_rng(0)
    sounds = [sound(seed) for seed in range(6)]
    copy = sounds[2][5000:] * np.float32(0.2)
    copy = copy + rng.normal(0.0, 0.002, len(copy)).astype(np.float32)
    found = matches([*sounds, copy])
    assert [(pair.first, pair.second) for pair in found] == [(2, 6)]
    assert found[0].matched_s >= 15.0


def matches(sounds, turns=None):
    words = [fingerprint(samples, RATE_HZ) for samples in sounds]
    turns = turns or [[]] * len(sounds)
    return same_sounds(words, [spoken_words(len(words_T), one) for words_T, one in zip(words, turns, strict=True)])


def test_a_noise_in_common_is_no_copy_where_the_speech_differs():
    noise = sound(1)
    talks, turns = [], []
    for seed, starts_s in ((2, (1.0, 9.0, 14.0)), (3, (3.0, 6.0, 16.0))):
        talk, speech = noise * np.float32(0.05), sound(seed)
        for start_s in starts_s:
            said = slice(int(start_s * RATE_HZ), int((start_s + 2.0) * RATE_HZ))
            talk[said] += speech[said]
        talks.append(talk)
        turns.append([Turn(start_s, start_s + 2.0, "ann") for start_s in starts_s])
    assert matches(talks), "without turns the noise alone is the same"
    assert matches(talks, turns) == []
    copied = talks[0][8000:] * np.float32(0.5)
    [pair] = matches([talks[0], copied], [turns[0], turns[1]])
    assert pair.matched_s >= 15.0, "turns of another recording hide no copy"


@pytest.mark.parametrize("length", [0, 10, 4096])
def test_silence_and_very_short_recordings_match_nothing(length):
    silent = np.zeros(length, np.float32)
    assert matches([silent, silent]) == []
