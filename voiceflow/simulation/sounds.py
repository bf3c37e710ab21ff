"""Sounds that are nobody's speech: breath, handling, clicks, rustle, tones and music, and what real recordings hold."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import scipy.signal

from voiceflow.timebase import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]
Generator = np.random.Generator

KINDS = ("breath", "thump", "clicks", "rustle", "tones")
_LEVEL_DB = {
    "recorded": (-30.0, 3.0),
    "breaths": (-25.0, 5.0),
    "breath": (-38.0, -12.0),
    "thump": (-30.0, 6.0),
    "clicks": (-30.0, 3.0),
    "rustle": (-38.0, -8.0),
    "tones": (-30.0, 3.0),
}
"""Loudness in dB relative to the speech of the conversation; relative to their own recording for `breaths`."""


def make_sound(rng: Generator, kind: str) -> FloatArray:
    """One sound of one of `KINDS`, at a root mean square of 1."""
    return unit_power(_MAKERS[kind](rng))


def background_events(
    rng: Generator, num_samples: int, *, per_s: float, sounds: Mapping[str, Sequence[FloatArray]] | None = None
) -> FloatArray:
    """Sounds at random times, scaled for speech at a root mean square of 1.

    A conversation has a few kinds of sound, not all of them: a keyboard, or a microphone that is held.

    Args:
        rng: Draws kinds, times and loudness.
        num_samples: Length of the result.
        per_s: Mean number of sounds a second.
        sounds: Sounds by kind to choose from; None makes new ones.
    """
    events_N = np.zeros(num_samples, np.float32)
    of_any = KINDS if sounds is None else sorted(kind for kind, rows in sounds.items() if rows)
    kinds = rng.permutation(np.array(of_any))[: int(rng.integers(1, 5))]
    offset_db = rng.uniform(-8.0, 4.0)
    for _ in range(int(rng.poisson(per_s * num_samples / SAMPLE_RATE_HZ))):
        kind = str(rng.choice(kinds))
        level_db = rng.uniform(*_LEVEL_DB[kind]) + offset_db
        if sounds is None:
            piece_N = make_sound(rng, kind)
        else:
            piece_N = sounds[kind][int(rng.integers(len(sounds[kind])))]
            if kind in ("breaths", "recorded"):
                piece_N = _faded(piece_N[: int(rng.uniform(0.2, 3.0) * SAMPLE_RATE_HZ)])
        start = int(rng.integers(0, num_samples))
        piece_N = piece_N[: num_samples - start]
        events_N[start : start + len(piece_N)] += piece_N * np.float32(10.0 ** (level_db / 20.0))
    return events_N


def _faded(samples_N: FloatArray, fade_s: float = 0.02) -> FloatArray:
    fade = min(int(fade_s * SAMPLE_RATE_HZ), len(samples_N) // 2)
    ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
    samples_N = samples_N.copy()
    samples_N[:fade] *= ramp
    samples_N[len(samples_N) - fade :] *= ramp[::-1]
    return samples_N


def unit_power(samples_N: FloatArray) -> FloatArray:
    """At a root mean square of 1."""
    return samples_N / np.float32(np.sqrt(np.mean(samples_N**2)) + 1e-9)


def _length(rng: Generator, low_s: float, high_s: float) -> int:
    return int(np.exp(rng.uniform(np.log(low_s), np.log(high_s))) * SAMPLE_RATE_HZ)


def _band(samples_N: FloatArray, low_hz: float, high_hz: float, order: int = 2) -> FloatArray:
    sos = scipy.signal.butter(order, [low_hz, min(7800.0, high_hz)], "band", fs=SAMPLE_RATE_HZ, output="sos")
    filtered: FloatArray = scipy.signal.sosfilt(sos, samples_N).astype(np.float32)
    return filtered


def _white(rng: Generator, num_samples: int) -> FloatArray:
    return rng.standard_normal(num_samples, dtype=np.float32)


def _breath(rng: Generator) -> FloatArray:
    """Air through a mouth: noise with two or three broad resonances, swelling and fading."""
    length = _length(rng, 0.15, 1.2)
    white_N = _white(rng, length)
    sound_N = np.zeros(length, np.float32)
    for centre_hz in rng.uniform([400.0, 1200.0, 3000.0], [1000.0, 2800.0, 6000.0]):
        sound_N += np.float32(rng.uniform(0.2, 1.0)) * _band(white_N, centre_hz * 0.75, centre_hz * 1.3, 1)
    position = np.linspace(0.0, 1.0, length, dtype=np.float32)
    shape = position ** np.float32(rng.uniform(0.5, 2.5)) * (1.0 - position) ** np.float32(rng.uniform(0.5, 2.5))
    return (sound_N * shape).astype(np.float32)


def _thump(rng: Generator) -> FloatArray:
    """A microphone touched, a table hit: low noise that dies away."""
    length = _length(rng, 0.03, 0.6)
    sound_N = _band(_white(rng, length), rng.uniform(25.0, 80.0), rng.uniform(120.0, 700.0), 1)
    return _faded(sound_N * np.exp(-np.arange(length, dtype=np.float32) / length * rng.uniform(2.0, 8.0)), 0.003)


def _clicks(rng: Generator) -> FloatArray:
    """A pen, a keyboard, lips: short broad pulses, one or a row of them."""
    count = int(rng.integers(1, 12))
    gap = _length(rng, 0.06, 0.4)
    sound_N = np.zeros(count * gap + 800, np.float32)
    low_hz = rng.uniform(300.0, 2500.0)
    for number in range(count):
        length = _length(rng, 0.002, 0.03)
        click_N = _white(rng, length) * np.exp(-np.linspace(0.0, 6.0, length, dtype=np.float32))
        start = number * gap + int(rng.integers(0, max(1, gap // 2)))
        sound_N[start : start + length] += np.float32(rng.uniform(0.3, 1.0)) * click_N[: len(sound_N) - start]
    return _band(sound_N, low_hz, low_hz * rng.uniform(2.0, 5.0), 1)


def _rustle(rng: Generator) -> FloatArray:
    """Paper and clothes: high noise that flickers."""
    length = _length(rng, 0.2, 3.0)
    knots = np.abs(_white(rng, max(4, length // 480))) ** np.float32(rng.uniform(1.0, 2.5))
    flicker = np.interp(np.linspace(0, len(knots) - 1, length), np.arange(len(knots)), knots).astype(np.float32)
    low_hz = rng.uniform(150.0, 2500.0)
    return _faded(_band(_white(rng, length), low_hz, low_hz * rng.uniform(2.0, 8.0), 1) * flicker, 0.05)


def _tones(rng: Generator) -> FloatArray:
    """A ring, a beep, or a few bars of music: notes of a scale with harmonics, one or several at once."""
    length = _length(rng, 0.3, 10.0)
    sound_N = np.zeros(length, np.float32)
    root_hz = float(np.exp(rng.uniform(np.log(80.0), np.log(900.0))))
    scale = rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 19, 24], size=int(rng.integers(1, 8)))
    note = _length(rng, 0.08, 1.2)
    rolloff = rng.uniform(0.5, 2.5)
    vibrato = rng.uniform(0.0, 0.004) if rng.random() < 0.5 else 0.0
    decay = rng.uniform(0.0, 5.0)
    for start in range(0, length, note):
        for step in rng.choice(scale, size=int(rng.integers(1, 4))):
            samples = np.arange(min(note, length - start), dtype=np.float32) / SAMPLE_RATE_HZ
            pitch_hz = root_hz * 2.0 ** (step / 12.0)
            phase = 2.0 * np.pi * pitch_hz * (samples + vibrato * np.sin(2.0 * np.pi * 5.5 * samples) / 5.5)
            tone_N = np.zeros(len(samples), np.float32)
            for harmonic in range(1, min(13, int(7000.0 / pitch_hz) + 1)):
                tone_N += np.sin(harmonic * phase).astype(np.float32) * np.float32(harmonic**-rolloff)
            tone_N *= np.exp(-samples * decay)
            sound_N[start : start + len(tone_N)] += _faded(tone_N, 0.008)
    return sound_N


def textures(rng: Generator, num_samples: int) -> FloatArray:
    """Sounds of no known kind: noise under patches of random band, length, attack and flicker.

    What is rubbed, pushed or blown in a real room comes in more kinds than anyone can list; only voice is left out.
    """
    window, hop = 512, 128
    spectrum_FT = scipy.signal.stft(_white(rng, num_samples), nperseg=window, noverlap=window - hop)[2]
    num_bins, num_frames = spectrum_FT.shape
    octave_F = np.log2(np.maximum(1.0, np.arange(num_bins)))[:, None]
    gain_FT = np.zeros((num_bins, num_frames), np.float32)
    kinds = [
        (
            rng.uniform(0.0, 7.0),
            rng.uniform(0.2, 2.5),
            np.exp(rng.uniform(np.log(0.02), np.log(4.0))),
            rng.uniform(0.0, 2.0),
        )
        for _ in range(int(rng.integers(1, 5)))
    ]
    for _ in range(int(rng.poisson(np.exp(rng.uniform(np.log(3.0), np.log(150.0)))))):
        centre, width, length_s, flicker = kinds[int(rng.integers(len(kinds)))]
        centre, length_s = centre + rng.normal(0.0, 0.5), length_s * np.exp(rng.normal(0.0, 0.4))
        length = max(2, int(length_s * SAMPLE_RATE_HZ / hop))
        position = np.arange(length) / length
        attack = rng.uniform(0.02, 0.6)
        shape = np.minimum(position / attack, np.exp(-(position - attack) * rng.uniform(0.5, 6.0)))
        knots = np.abs(rng.standard_normal(max(3, int(length_s / rng.uniform(0.02, 0.3)))))
        shape = shape * np.interp(position, np.linspace(0.0, 1.0, len(knots)), knots) ** flicker
        drift = rng.normal(0.0, 1.0) * position
        band_FT = np.exp(-(((octave_F - centre - drift) / width) ** 2)) * 10.0 ** (rng.normal(0.0, 8.0) / 20.0)
        start = int(rng.integers(num_frames))
        piece_FT = (band_FT * shape).astype(np.float32)[:, : num_frames - start]
        gain_FT[:, start : start + piece_FT.shape[1]] += piece_FT
    samples_N = scipy.signal.istft(spectrum_FT * gain_FT, nperseg=window, noverlap=window - hop)[1][:num_samples]
    return unit_power(samples_N)


def tunes(rng: Generator, num_samples: int) -> FloatArray:
    """Music: chords, a melody and a bass of additive tones, with or without drums, at one beat."""
    sound_N = np.zeros(num_samples, np.float32)
    beat = int(60.0 / rng.uniform(60.0, 160.0) * SAMPLE_RATE_HZ)
    key = int(rng.integers(36, 60))
    steps = np.array([0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.6 else [0, 2, 3, 5, 7, 8, 10])
    instruments = [_instrument(rng) for _ in range(int(rng.integers(1, 4)))]
    drums = rng.uniform(0.2, 2.0) if rng.random() < 0.5 else 0.0
    chord = 0
    for number, start in enumerate(range(0, num_samples, beat)):
        chord = int(rng.integers(7)) if number % 4 == 0 else chord
        for octave, instrument in enumerate(instruments):
            if rng.random() < 0.25:
                continue
            for voice in range(int(rng.integers(1, 4)) if octave == 0 else 1):
                degree = chord + 2 * voice if rng.random() < 0.8 else int(rng.integers(14))
                midi = key + 12 * octave + int(steps[degree % 7]) + 12 * (degree // 7)
                note_N = instrument(440.0 * 2.0 ** ((midi - 69) / 12.0), int(beat * rng.choice([0.5, 1.0, 2.0])))
                note_N = note_N[: num_samples - start]
                sound_N[start : start + len(note_N)] += note_N
        for half in range(2) if drums else ():
            hit_N = _thump(rng) * 4.0 if (number + half) % 2 else _clicks(rng)[: SAMPLE_RATE_HZ // 8] * 2.0
            begin = min(num_samples, start + half * beat // 2)
            hit_N = hit_N[: num_samples - begin]
            sound_N[begin : begin + len(hit_N)] += np.float32(drums) * hit_N
    return unit_power(sound_N)


def _instrument(rng: Generator) -> Callable[[float, int], FloatArray]:
    """A timbre: how strong each harmonic is, how fast it dies away, how a note begins and trembles."""
    strength_H = np.arange(1, 25) ** -rng.uniform(0.3, 2.5) * np.exp(rng.normal(0.0, 0.6, 24))
    if rng.random() < 0.2:
        strength_H[1::2] *= 0.1  # a clarinet has odd harmonics
    decay, damping = rng.choice([0.0, 1.0, 3.0, 6.0]), rng.uniform(0.0, 1.0)
    attack_s = np.exp(rng.uniform(np.log(0.003), np.log(0.15)))
    tremble = rng.uniform(0.0, 0.006) if rng.random() < 0.4 else 0.0
    stretch = rng.choice([0.0, 0.0, 4e-4])

    def play(pitch_hz: float, length: int) -> FloatArray:
        samples = np.arange(length, dtype=np.float32) / SAMPLE_RATE_HZ
        phase = 2.0 * np.pi * pitch_hz * (samples + tremble * np.sin(2.0 * np.pi * 5.5 * samples) / 34.6)
        note_N = np.zeros(length, np.float32)
        for harmonic in range(1, min(25, int(7500.0 / pitch_hz) + 1)):
            fading = np.exp(-samples * decay * (1.0 + damping * harmonic * 0.3))
            inharmonic = harmonic * (1.0 + stretch * harmonic**2) ** 0.5
            note_N += (np.sin(inharmonic * phase) * fading * strength_H[harmonic - 1]).astype(np.float32)
        return _faded(note_N * np.minimum(1.0, samples / np.float32(attack_s)), 0.005)

    return play


_MAKERS = {"breath": _breath, "thump": _thump, "clicks": _clicks, "rustle": _rustle, "tones": _tones}
