"""Rooms by the image method: how mouths at several places are heard by one microphone."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from voiceflow.simulation.acoustics import HEADSET
from voiceflow.timebase import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]
Generator = np.random.Generator

PLACES = 8
"""Mouths in each room."""
MAX_RESPONSE_S = 0.6
SOUND_M_PER_S = 343.0
MAX_ORDER = 12
"""Reflections up to this order are computed one by one; what comes later is diffuse."""
MOUTH_HEIGHT_M = (1.1, 1.8)
TAPS, COLOURS, COLOUR_DB = 128, 6, 3.0
"""Length of a microphone's filter, waves in its spectrum, and how high the first of them is, about."""
WALL_M = 0.3
"""Nothing stands nearer to a wall."""


class _Geometry(NamedTuple):
    """Ranges that are drawn from."""

    floor_m: tuple[float, float]
    """Length and width of the floor."""
    rt60_s: tuple[float, float]
    distance_m: tuple[float, float]
    """From mouth to microphone."""


_GEOMETRY = {
    "close": _Geometry((2.5, 5.0), (0.12, 0.3), (0.25, 0.8)),
    "room": _Geometry((3.0, 8.0), (0.25, 0.6), (0.8, 2.5)),
    "far": _Geometry((4.0, 12.0), (0.35, 1.0), (2.0, 6.0)),
}


@dataclass(frozen=True)
class Room:
    """Responses of shape (places, N) at 16 kHz, the direct sound at sample 0 with an amplitude of 1."""

    kind: str
    responses_PN: FloatArray


def image_room(rng: Generator, kind: str) -> Room:
    """A shoebox room with one microphone and `PLACES` mouths.

    Early reflections are computed one by one; the tail is diffuse noise that decays as the room does, of the energy
    that the reflections have where it takes over.

    Args:
        rng: Draws walls, absorption, microphone and mouths.
        kind: ``close``, ``room`` or ``far``.

    Source:
        Allen and Berkley, Image method for efficiently simulating small-room acoustics, 1979, as pyroomacoustics has
        it; the hybrid follows Lehmann and Johansson, Diffuse reverberation model, 2010.
    """
    import pyroomacoustics

    geometry = _GEOMETRY[kind]
    walls_m = np.array([*rng.uniform(*geometry.floor_m, 2), rng.uniform(2.4, 3.6)])
    rt60_s = rng.uniform(*geometry.rt60_s)
    volume, surface = np.prod(walls_m), 2 * (walls_m[0] * walls_m[1] + (walls_m[0] + walls_m[1]) * walls_m[2])
    # Sabine's formula; a small room cannot ring for less than its walls can take.
    absorption = min(0.95, 0.1611 * volume / (surface * rt60_s))
    rt60_s = 0.1611 * volume / (surface * absorption)
    room = pyroomacoustics.ShoeBox(
        walls_m, fs=SAMPLE_RATE_HZ, materials=pyroomacoustics.Material(absorption), max_order=MAX_ORDER
    )
    microphone_m = np.array([*rng.uniform(0.3, 0.7, 2) * walls_m[:2], rng.uniform(0.7, 1.5)])
    room.add_microphone(microphone_m)
    for _ in range(PLACES):
        room.add_source(_mouth(rng, walls_m, microphone_m, geometry.distance_m))
    room.compute_rir()
    length = int(MAX_RESPONSE_S * SAMPLE_RATE_HZ)
    # The first image that is not computed has gone between the nearest walls once more than the highest order.
    whole_s = (MAX_ORDER + 1) * float(walls_m.min()) / SOUND_M_PER_S
    responses = [_with_tail(rng, np.asarray(response), rt60_s, length, whole_s) for response in room.rir[0]]
    # What has decayed by 60 dB is nothing anybody hears, and costs time.
    audible = min(length, max(int(rt60_s * SAMPLE_RATE_HZ), 400))
    return Room(kind, np.stack(responses)[:, :audible])


def _mouth(
    rng: Generator, walls_m: np.ndarray, microphone_m: np.ndarray, distance_m: tuple[float, float]
) -> np.ndarray:
    """A place at about the wanted distance, inside the room."""
    angle, distance = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(*distance_m)
    place = microphone_m + np.array([distance * np.cos(angle), distance * np.sin(angle), 0.0])
    place[2] = rng.uniform(*MOUTH_HEIGHT_M) if distance > 0.8 else microphone_m[2] + rng.uniform(0.0, 0.2)
    inside: np.ndarray = np.clip(place, WALL_M, walls_m - WALL_M)
    return inside


def _with_tail(rng: Generator, response_N: np.ndarray, rt60_s: float, length: int, whole_s: float) -> FloatArray:
    """From the direct sound on, at an amplitude of 1; diffuse from `whole_s` after the sound was made, until when no
    reflection is missing."""
    direct = int(np.argmax(np.abs(response_N)))
    response_N = response_N[direct:] / response_N[direct]
    decay_N = np.exp(-6.9 * np.arange(length) / (rt60_s * SAMPLE_RATE_HZ))
    known = np.zeros(length)
    known[: min(length, len(response_N))] = response_N[:length]
    mixing = min(length, max(int(0.02 * SAMPLE_RATE_HZ), int(whole_s * SAMPLE_RATE_HZ) - direct))
    window = slice(max(1, mixing - int(0.02 * SAMPLE_RATE_HZ)), mixing)
    level = np.sqrt(np.mean(known[window] ** 2) / np.mean(decay_N[window] ** 2))
    tail_N = rng.standard_normal(length) * decay_N * level
    fade = int(0.005 * SAMPLE_RATE_HZ)
    share_N = np.clip((np.arange(length) - (mixing - fade)) / fade, 0.0, 1.0)
    whole: FloatArray = (known * np.sqrt(1.0 - share_N) + tail_N * np.sqrt(share_N)).astype(np.float32)
    return whole


def headset_room(rng: Generator, room: Room) -> Room:
    """One microphone at each mouth, all mixed: near by, and late and weak in those of the others.

    Args:
        rng: Draws how near, how late and how weak.
        room: In which they sit, of kind ``room``.
    """
    near_PN = room.responses_PN * np.float32(10.0 ** (-rng.uniform(8.0, 20.0) / 20.0))
    near_PN[:, 0] = 1.0
    others_PN = np.zeros_like(near_PN)
    for place in range(len(near_PN)):
        for other in rng.permutation(len(near_PN))[:3]:
            delay = int(rng.uniform(0.002, 0.009) * SAMPLE_RATE_HZ)
            gain = np.float32(10.0 ** (rng.uniform(-36.0, -12.0) / 20.0))
            others_PN[place, delay:] += gain * room.responses_PN[other, : others_PN.shape[1] - delay]
    return Room(HEADSET, near_PN + others_PN)


def microphone(rng: Generator) -> FloatArray:
    """What microphones and the way people face them do to the spectrum: a smooth, causal filter of `TAPS` taps.

    Source:
        Oppenheim and Schafer, Discrete-Time Signal Processing: minimum phase by folding the cepstrum.
    """
    log_f = np.linspace(0.0, 1.0, TAPS + 1) ** 0.5
    waves = np.cos(np.pi * np.outer(np.arange(1, COLOURS + 1), log_f))
    gain_db = rng.normal(0.0, COLOUR_DB / np.sqrt(np.arange(1, COLOURS + 1))) @ waves
    cepstrum = np.fft.irfft(gain_db * np.log(10.0) / 20.0)
    cepstrum[1:TAPS] *= 2.0
    cepstrum[TAPS + 1 :] = 0.0
    response: FloatArray = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[:TAPS].astype(np.float32)
    return response
