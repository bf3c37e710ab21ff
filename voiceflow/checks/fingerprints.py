"""Recordings that are the same sound, whatever their level, codec or where they were cut.

Source:
    Haitsma and Kalker, A Highly Robust Audio Fingerprinting System, ISMIR 2002.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from voiceflow.checks.signal import FloatArray
from voiceflow.turns import Turn

PrintArray = npt.NDArray[np.uint32]
SpokenArray = npt.NDArray[np.bool_]
RATE_HZ, WINDOW, HOP = 4000, 1024, 64
"""256 ms every 16 ms, at 4 kHz: what a telephone leaves is enough."""
LOW_HZ, HIGH_HZ, NUM_BANDS = 300.0, 1900.0, 33
MAX_SHARED = 32
"""A word that so many recordings have tells nothing."""
MIN_HITS = 3
"""Words in common at one distance in time before two recordings are compared."""
BLOCK_S = 1.0
MAX_BIT_ERRORS = 0.3
"""Of a second of the same sound fewer bits differ; of unrelated ones about half."""
MIN_SPOKEN_BLOCKS, MIN_SPOKEN_SHARE = 3, 0.25
"""Where somebody speaks in either of two copies, so much is the same at least; a noise in common is so elsewhere."""


class SameSound(NamedTuple):
    """Two recordings, by index, that hold the same sound for so many seconds."""

    first: int
    second: int
    matched_s: float


def fingerprint(samples_N: FloatArray, rate_hz: int) -> PrintArray:
    """One word of 32 bits for each 16 ms, shape (T,): where the energy in neighbouring bands rises and falls; 0 in
    silence."""
    import scipy.fft
    import soxr

    low_N = samples_N if rate_hz == RATE_HZ else soxr.resample(samples_N, rate_hz, RATE_HZ, quality="LQ")
    num_frames = (len(low_N) - WINDOW) // HOP + 1
    if num_frames < 2:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(low_N, WINDOW)[::HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    edges = np.round(np.geomspace(LOW_HZ, HIGH_HZ, NUM_BANDS + 1) * WINDOW / RATE_HZ).astype(np.int64)
    words = []
    energy_TB = np.zeros((0, NUM_BANDS))
    # In pieces, so that an hour takes no more memory than a minute.
    for start in range(0, num_frames, 2048):
        spectrum = scipy.fft.rfft(frames[start : start + 2048] * window, axis=1)[:, edges[0] : edges[-1]]
        power = spectrum.real**2 + spectrum.imag**2
        energy_TB = np.concatenate([energy_TB[-1:], np.add.reduceat(power, edges[:-1] - edges[0], axis=1)])
        differences = np.diff(energy_TB, axis=1)
        bits = (differences[1:] - differences[:-1]) > 0
        packed = np.packbits(bits, axis=1, bitorder="little").view("<u4")[:, 0]
        words.append(np.where(energy_TB[1:].sum(axis=1) > 1e-7, packed, 0).astype(np.uint32))
    return np.concatenate(words)


def spoken_words(num_words: int, turns: Sequence[Turn]) -> SpokenArray:
    """Whether somebody speaks at the time of each word of a `fingerprint`, shape (T,)."""
    spoken_T = np.zeros(num_words, np.bool_)
    for turn in turns:
        first, last = (round((at_s * RATE_HZ - WINDOW / 2) / HOP) for at_s in (turn.start_s, turn.end_s))
        spoken_T[max(0, first) : max(0, last)] = True
    return spoken_T


def same_sounds(prints: Sequence[PrintArray], spoken: Sequence[SpokenArray]) -> list[SameSound]:
    """Pairs of recordings with sound in common, and how much; for `fingerprint` and `spoken_words` of each."""
    lengths = [len(words_T) for words_T in prints]
    words = np.concatenate([np.zeros(0, np.uint32), *prints])
    owners = np.repeat(np.arange(len(prints), dtype=np.int32), lengths)
    times = np.concatenate([np.zeros(0, np.int32), *(np.arange(length, dtype=np.int32) for length in lengths)])
    words, owners, times = words[words != 0], owners[words != 0], times[words != 0]
    order = np.argsort(words, kind="stable")
    words, owners, times = words[order], owners[order], times[order]
    candidates = _hits(words, owners, times, len(prints))
    found = []
    for first, second, offset in candidates:
        matched_s = _matched_s((prints[first], prints[second]), (spoken[first], spoken[second]), offset)
        if matched_s > 0:
            found.append(SameSound(first, second, matched_s))
    return found


def _hits(
    words: PrintArray, owners: npt.NDArray[np.int32], times: npt.NDArray[np.int32], num_recordings: int
) -> list[tuple[int, int, int]]:
    """Pairs with `MIN_HITS` words in common at one offset, the best offset of each pair."""
    keys = []
    starts = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]])) if len(words) else np.zeros(0, np.int64)
    sizes = np.diff(np.concatenate([starts, [len(words)]]))
    # Entries that far apart in the sorted list have the same word where both lie in one group.
    is_rare = np.repeat(sizes <= MAX_SHARED, sizes) if len(starts) else np.zeros(0, np.bool_)
    for distance in range(1, MAX_SHARED):
        index = np.flatnonzero(is_rare[:-distance] & (words[:-distance] == words[distance:]))
        if not len(index):
            break
        left, right = owners[index], owners[index + distance]
        other = left != right
        left, right, index = left[other], right[other], index[other]
        swap = left > right
        shift = np.where(swap, -1, 1) * (times[index].astype(np.int64) - times[index + distance])
        pair = np.minimum(left, right).astype(np.int64) * num_recordings + np.maximum(left, right)
        keys.append(np.stack([pair, shift >> 1], axis=1))
    if not keys:
        return []
    unique, counts = np.unique(np.concatenate(keys), axis=0, return_counts=True)
    best: dict[int, tuple[int, int]] = {}
    for (pair, half_shift), count in zip(
        unique[counts >= MIN_HITS].tolist(), counts[counts >= MIN_HITS].tolist(), strict=True
    ):
        if count > best.get(pair, (0, 0))[0]:
            best[pair] = (count, half_shift * 2)
    return [(pair // num_recordings, pair % num_recordings, shift) for pair, (_, shift) in sorted(best.items())]


def _matched_s(words: tuple[PrintArray, PrintArray], spoken: tuple[SpokenArray, SpokenArray], offset: int) -> float:
    """Seconds whose bits agree where the second is moved by `offset` words, or one more or less; 0 where speech is not
    among them."""
    block = round(BLOCK_S * RATE_HZ / HOP)
    most = 0
    for shift in (offset - 1, offset, offset + 1, offset + 2):
        start = max(0, shift)
        length = min(len(words[0]), len(words[1]) + shift) - start
        if length < block:
            continue
        one, other = slice(start, start + length), slice(start - shift, start - shift + length)
        ours, theirs = words[0][one], words[1][other]
        audible = (ours != 0) & (theirs != 0)
        errors = np.where(audible, np.bitwise_count(ours ^ theirs) / 32.0, 0.5)
        whole = length // block * block
        is_same = errors[:whole].reshape(-1, block).mean(axis=1) < MAX_BIT_ERRORS
        speaks = (spoken[0][one] | spoken[1][other])[:whole].reshape(-1, block).mean(axis=1) > 0.5
        if speaks.sum() < MIN_SPOKEN_BLOCKS or is_same[speaks].mean() >= MIN_SPOKEN_SHARE:
            most = max(most, int(is_same.sum()))
    return most * BLOCK_S
