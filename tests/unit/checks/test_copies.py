import numpy as np
import pytest

from voiceflow.checks.fingerprints import fingerprint, same_sounds

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
    found = same_sounds([fingerprint(samples, RATE_HZ) for samples in [*sounds, copy]])
    assert [(pair.first, pair.second) for pair in found] == [(2, 6)]
    assert found[0].matched_s >= 15.0


@pytest.mark.parametrize("length", [0, 10, 4096])
def test_silence_and_very_short_recordings_match_nothing(length):
    silent = np.zeros(length, np.float32)
    assert same_sounds([fingerprint(silent, RATE_HZ), fingerprint(silent, RATE_HZ)]) == []
