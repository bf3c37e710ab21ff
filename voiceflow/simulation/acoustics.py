"""What happens between mouth and file in held-out conversations: levels, diffuse rooms, noise, the telephone band."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import scipy.signal

from voiceflow.timebase import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]
Generator = np.random.Generator

CONDITIONS = ("close", "room", "far", "telephone")
HEADSET = "headset"
"""A microphone at each mouth, all mixed: in training only."""


SNR_DB = {
    "close": (20.0, 45.0),
    "room": (12.0, 35.0),
    "far": (8.0, 25.0),
    "telephone": (12.0, 35.0),
    HEADSET: (25.0, 65.0),
}
"""Ranges that are drawn from, as the two below."""
_RT60_S = {"close": (0.05, 0.2), "room": (0.2, 0.6), "far": (0.4, 1.0), "telephone": (0.05, 0.3)}
_DIRECT_TO_REVERBERANT_DB = {"close": (12.0, 25.0), "room": (3.0, 12.0), "far": (-6.0, 4.0), "telephone": (10.0, 25.0)}


def room_response(rng: Generator, condition: str) -> FloatArray:
    """An impulse response: a direct path, then a decaying diffuse tail.

    Args:
        rng: Draws reverberation time, direct-to-reverberant ratio and the tail.
        condition: One of `CONDITIONS`.

    Source:
        Moorer, About this reverberation business, 1979: exponentially decaying Gaussian noise.
    """
    rt60_s = rng.uniform(*_RT60_S[condition])
    ratio_db = rng.uniform(*_DIRECT_TO_REVERBERANT_DB[condition])
    time_s = np.arange(int(min(rt60_s, 0.8) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail_N = rng.standard_normal(len(time_s)) * np.exp(-6.9 * time_s / rt60_s)
    tail_N[: int(0.002 * SAMPLE_RATE_HZ)] = 0.0
    # Walls take high frequencies first.
    tail_N = scipy.signal.lfilter([1.0], [1.0, -rng.uniform(0.1, 0.7)], tail_N)
    tail_N *= np.sqrt(10.0 ** (-ratio_db / 10.0) / max(1e-9, float(np.sum(tail_N**2))))
    tail_N[0] = 1.0
    response: FloatArray = tail_N.astype(np.float32)
    return response


def apply_response(samples_N: FloatArray, response_N: FloatArray) -> FloatArray:
    """Convolve and keep the length, so that turn times stay exact."""
    wet_N: FloatArray = scipy.signal.oaconvolve(samples_N, response_N)[: len(samples_N)].astype(np.float32)
    return wet_N


def noise(rng: Generator, num_samples: int) -> FloatArray:
    """Background noise at unit power: a coloured floor whose loudness drifts, and knocks and rustles."""
    white_N = rng.standard_normal(num_samples).astype(np.float32)
    floor_N = scipy.signal.lfilter([1.0], [1.0, -rng.uniform(0.0, 0.98)], white_N)
    knots = rng.uniform(0.5, 1.5, num_samples // SAMPLE_RATE_HZ + 2)
    floor_N = floor_N * np.interp(np.arange(num_samples) / SAMPLE_RATE_HZ, np.arange(len(knots)), knots)
    floor_N /= np.sqrt(np.mean(floor_N**2)) + 1e-9
    if rng.random() < 0.7:
        for _ in range(rng.poisson(num_samples / SAMPLE_RATE_HZ * rng.uniform(0.05, 0.8))):
            length = int(np.exp(rng.uniform(np.log(0.01), np.log(1.5))) * SAMPLE_RATE_HZ)
            start = int(rng.integers(0, max(1, num_samples - length)))
            burst_N = rng.standard_normal(length) * np.exp(-np.arange(length) / length * rng.uniform(1.0, 8.0))
            low = rng.uniform(60.0, 2000.0)
            band = scipy.signal.butter(
                2, [low, min(7500.0, low * rng.uniform(1.5, 6.0))], "band", fs=16000, output="sos"
            )
            burst_N = scipy.signal.sosfilt(band, burst_N)
            burst_N *= 10.0 ** (rng.uniform(0.0, 26.0) / 20.0) / (np.sqrt(np.mean(burst_N**2)) + 1e-9)
            floor_N[start : start + length] += burst_N[: num_samples - start]
    floor: FloatArray = floor_N.astype(np.float32)
    return floor


def rumble(rng: Generator, num_samples: int) -> FloatArray:
    """What shakes a microphone on a head: low, swelling noise at a root mean square of 1."""
    band = scipy.signal.butter(2, [20.0, rng.uniform(60.0, 250.0)], "band", fs=SAMPLE_RATE_HZ, output="sos")
    rumble_N = scipy.signal.sosfilt(band, rng.standard_normal(num_samples))
    knots = np.exp(rng.normal(0.0, 1.0, num_samples // (SAMPLE_RATE_HZ // 2) + 2))
    rumble_N *= np.interp(np.arange(num_samples) * 2 / SAMPLE_RATE_HZ, np.arange(len(knots)), knots)
    rumble_N /= np.sqrt(np.mean(rumble_N**2)) + 1e-9
    swelling: FloatArray = rumble_N.astype(np.float32)
    return swelling


def telephone_band(samples_N: FloatArray) -> FloatArray:
    """300 to 3400 Hz and mu-law steps, as G.711 leaves them, at 16 kHz."""
    band = scipy.signal.butter(4, [300.0, 3400.0], "band", fs=SAMPLE_RATE_HZ, output="sos")
    narrow_N = scipy.signal.sosfilt(band, samples_N)
    scale = float(np.abs(narrow_N).max()) + 1e-9
    compressed_N = np.sign(narrow_N) * np.log1p(255.0 * np.abs(narrow_N) / scale) / np.log(256.0)
    stepped_N = np.round(compressed_N * 127.0) / 127.0
    expanded_N = np.sign(stepped_N) * (256.0 ** np.abs(stepped_N) - 1.0) / 255.0 * scale
    expanded: FloatArray = expanded_N.astype(np.float32)
    return expanded


def mix(
    rng: Generator, voices: Mapping[str, FloatArray], *, condition: str, level_dbfs_range: tuple[float, float]
) -> FloatArray:
    """Put voices of one held-out conversation into one recording.

    Args:
        rng: Draws rooms, gains, noise and level.
        voices: Each speaker's speech with silence between, equal lengths, shape (N,).
        condition: One of `CONDITIONS`.
        level_dbfs_range: Root mean square of speech in the result, in dB relative to full scale.

    Returns:
        Samples within (-1, 1), shape (N,).
    """
    num_samples = len(next(iter(voices.values())))
    speech_N = np.zeros(num_samples, np.float32)
    for voice_N in voices.values():
        gain = np.float32(10.0 ** (np.clip(rng.normal(0.0, 3.0), -8.0, 8.0) / 20.0))
        speech_N += gain * apply_response(voice_N, room_response(rng, condition))
    speaking_N = np.abs(speech_N) > 1e-4
    power = float(np.mean(speech_N[speaking_N] ** 2)) if speaking_N.any() else 1e-6
    snr_db = rng.uniform(*SNR_DB[condition])
    mixed_N = speech_N + noise(rng, num_samples) * np.float32(np.sqrt(power * 10.0 ** (-snr_db / 10.0)))
    if condition == "telephone":
        mixed_N = telephone_band(mixed_N)
    return limited(mixed_N * np.float32(10.0 ** (rng.uniform(*level_dbfs_range) / 20.0) / np.sqrt(power)))


def limited(samples_N: FloatArray) -> FloatArray:
    """Scaled down as a whole where peaks exceed -1 dBFS, instead of clipped."""
    peak = float(np.abs(samples_N).max())
    return samples_N * np.float32(min(1.0, 0.89 / max(peak, 1e-9)))
