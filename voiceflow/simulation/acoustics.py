"""What happens between mouth and file: levels, rooms, noise, headsets, the telephone band."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.signal

from voiceflow.timebase import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]
Generator = np.random.Generator

CONDITIONS = ("close", "room", "far", "telephone")
HEADSET = "headset"
"""A microphone at each mouth, all mixed: in training only, see `VarietyConfig`."""


class _Acoustics(NamedTuple):
    """Ranges that are drawn from."""

    rt60_s: tuple[float, float]
    direct_to_reverberant_db: tuple[float, float]
    snr_db: tuple[float, float]


_ACOUSTICS = {
    "close": _Acoustics((0.05, 0.2), (12.0, 25.0), (20.0, 45.0)),
    "room": _Acoustics((0.2, 0.6), (3.0, 12.0), (12.0, 35.0)),
    "far": _Acoustics((0.4, 1.0), (-6.0, 4.0), (8.0, 25.0)),
    "telephone": _Acoustics((0.05, 0.3), (10.0, 25.0), (12.0, 35.0)),
    HEADSET: _Acoustics((0.2, 0.6), (12.0, 25.0), (25.0, 65.0)),
}


def room_response(rng: Generator, condition: str) -> FloatArray:
    """An impulse response: a direct path, then a decaying diffuse tail.

    Args:
        rng: Draws reverberation time, direct-to-reverberant ratio and the tail.
        condition: One of `CONDITIONS`, or `HEADSET`.

    Source:
        Moorer, About this reverberation business, 1979: exponentially decaying Gaussian noise.
    """
    rt60_s = rng.uniform(*_ACOUSTICS[condition].rt60_s)
    ratio_db = rng.uniform(*_ACOUSTICS[condition].direct_to_reverberant_db)
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


def _rumble(rng: Generator, num_samples: int) -> FloatArray:
    """What shakes a microphone on a head: low, swelling noise, for speech at a root mean square of 1."""
    band = scipy.signal.butter(2, [20.0, rng.uniform(60.0, 250.0)], "band", fs=SAMPLE_RATE_HZ, output="sos")
    rumble_N = scipy.signal.sosfilt(band, rng.standard_normal(num_samples))
    knots = np.exp(rng.normal(0.0, 1.0, num_samples // (SAMPLE_RATE_HZ // 2) + 2))
    rumble_N *= np.interp(np.arange(num_samples) * 2 / SAMPLE_RATE_HZ, np.arange(len(knots)), knots)
    rumble_N *= 10.0 ** (rng.uniform(-55.0, -24.0) / 20.0) / (np.sqrt(np.mean(rumble_N**2)) + 1e-9)
    rumble: FloatArray = rumble_N.astype(np.float32)
    return rumble


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


def headset_response(rng: Generator, num_microphones: int) -> FloatArray:
    """How a mouth is heard when one microphone a speaker is mixed: near by, and late and weak in the others."""
    response_N = room_response(rng, HEADSET)
    for _ in range(num_microphones - 1):
        delay = int(rng.uniform(0.002, 0.009) * SAMPLE_RATE_HZ)
        other_N = room_response(rng, "room") * np.float32(10.0 ** (rng.uniform(-36.0, -12.0) / 20.0))
        length = max(len(response_N), delay + len(other_N))
        response_N = np.pad(response_N, (0, length - len(response_N)))
        response_N[delay : delay + len(other_N)] += other_N
    return response_N


def moving(rng: Generator, voice_N: FloatArray, response_N: FloatArray, condition: str) -> FloatArray:
    """A voice that changes place: it fades from one response to another and back, and its loudness drifts."""
    num_samples = len(voice_N)
    knots = rng.uniform(0.0, 1.0, max(2, num_samples // (5 * SAMPLE_RATE_HZ)))
    position = np.arange(num_samples) / num_samples * (len(knots) - 1)
    share_N = np.interp(position, np.arange(len(knots)), knots).astype(np.float32)
    drift_N = 10.0 ** (np.interp(position, np.arange(len(knots)), rng.uniform(-7.0, 3.0, len(knots))) / 20.0)
    other_N = apply_response(voice_N, room_response(rng, condition))
    moved_N: FloatArray = (
        (apply_response(voice_N, response_N) * share_N + other_N * (1.0 - share_N)) * drift_N
    ).astype(np.float32)
    return moved_N


def mix(
    rng: Generator,
    voices: dict[str, FloatArray],
    *,
    condition: str,
    level_dbfs_range: tuple[float, float],
    moving_share: float = 0.0,
    surroundings: Mapping[str, FloatArray] | None = None,
    events_N: FloatArray | None = None,
    gated: bool = False,
) -> FloatArray:
    """Put voices of one conversation into one recording.

    Args:
        rng: Draws rooms, gains, noise and level.
        voices: Each speaker's speech with silence between, equal lengths, shape (N,).
        condition: One of `CONDITIONS`, or `HEADSET`.
        level_dbfs_range: Root mean square of speech in the result, in dB relative to full scale.
        moving_share: Share of voices that move.
        surroundings: What a voice brings along beside its speech, shape (N,); loudness is that of the speech alone.
        events_N: Sounds that are no speech, for speech at a root mean square of 1, shape (N,).
        gated: Whether all that is neither speech nor near it is cut to digital silence.

    Returns:
        Samples within (-1, 1), shape (N,).
    """
    num_samples = len(next(iter(voices.values())))
    speech_N = np.zeros(num_samples, np.float32)
    beside_N = np.zeros(num_samples, np.float32)
    for speaker, voice_N in voices.items():
        spread_db, most_db = (5.0, 12.0) if condition == HEADSET else (3.0, 8.0)
        gain = np.float32(10.0 ** (np.clip(rng.normal(0.0, spread_db), -most_db, most_db) / 20.0))
        response_N = headset_response(rng, len(voices)) if condition == HEADSET else room_response(rng, condition)
        if moving_share and rng.random() < moving_share:
            speech_N += gain * moving(rng, voice_N, response_N, condition)
        else:
            speech_N += gain * apply_response(voice_N, response_N)
        if surroundings and speaker in surroundings:
            beside_N += gain * apply_response(surroundings[speaker], response_N)
    speaking_N = np.abs(speech_N) > 1e-4
    power = float(np.mean(speech_N[speaking_N] ** 2)) if speaking_N.any() else 1e-6
    snr_db = rng.uniform(*_ACOUSTICS[condition].snr_db)
    mixed_N = speech_N + noise(rng, num_samples) * np.float32(np.sqrt(power * 10.0 ** (-snr_db / 10.0)))
    mixed_N += beside_N
    if condition == HEADSET:
        mixed_N += _rumble(rng, num_samples) * np.float32(np.sqrt(power))
    if events_N is not None:
        mixed_N += events_N * np.float32(np.sqrt(power))
    if gated:
        # Cut 0.3 s after the last sample of speech.
        near_N = scipy.ndimage.maximum_filter1d(speaking_N.astype(np.uint8), int(0.6 * SAMPLE_RATE_HZ))
        mixed_N = mixed_N * near_N
    if condition == "telephone":
        mixed_N = telephone_band(mixed_N)
    level = 10.0 ** (rng.uniform(*level_dbfs_range) / 20.0)
    mixed_N *= np.float32(level / np.sqrt(power))
    # A limiter instead of clipping: peaks above -1 dBFS are scaled down as a whole.
    peak = float(np.abs(mixed_N).max())
    return mixed_N * np.float32(min(1.0, 0.89 / max(peak, 1e-9)))
