"""What the samples of one recording tell: rate, band, codec, offset, clipping, silence, and how high voices lie."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from voiceflow.turns import Turn

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
FRAMES_PER_S = 100
"""Levels and labels are looked at every 10 ms."""
LOW_BAND_HZ = 70.0
TYPICAL_PITCH_HZ, TYPICAL_CENTRE_HZ = 180.0, 500.0
"""Medians over clean conversations; see `voice_height`."""
MAX_FRAMES = 600
"""Frames of a recording whose pitch is looked at, evenly spread: enough, and quick."""
MAX_SPECTRA, MIN_SPECTRA = 1200, 32
MIN_VOICED_SHARE = 0.4
"""Of the louder frames: with fewer voiced ones the pitch is that of the noise."""
SPECTRUM_S = 0.032
EDGE_SHARE, EDGE_DB = 0.0625, 18.0
"""Width of the bands compared below and above an edge, of half the rate; and how far all that lies above must be
below it: speech falls off by less."""
EDGE_GUARD_HZ, EDGE_TOP_SHARE = 400.0, 0.97
"""Filters are not steeper than this; nearer to half the rate there is too little above an edge to be looked at."""
HISS_DB, FLOOR_DB, MIN_HISS_SHARE = 12.0, 10.0, 0.005
"""A frame hisses with no less than this above an edge, below its voice, and so far above the floor; where this share of
frames does, there is sound above the edge, and it is the voices that are dull."""
QUANTISATION_POWER = 1.0 / 12.0 / 32768.0**2
"""Of 16 bits, for samples within (-1, 1)."""
HOLE_DB = 40.0
"""Codecs that run out of bits leave parts of the spectrum out: so far below what is usual there."""
CLIP_RUN = 3
"""Samples in a row at the largest value: a peak has one, or two by chance."""
CLIP_MIN_PEAK = 0.02
DROPOUT_S = 0.04
"""Exact zeros for so long inside speech were not recorded, but lost."""
BESIDE_DROPOUT_S, BESIDE_DROPOUT_DB, LEAST_BESIDE = 0.01, -30.0, 8.0 / 32768.0
"""Sound that is cut off lies so close to what is lost, and is as loud as this, relative to all speech and at least:
what fades into zeros was quieter than 16 bits can tell."""


class Band(NamedTuple):
    """Where the spectrum of a recording breaks off, if it does."""

    bandwidth_share: float
    """Highest frequency with content, as a share of half the sample rate; 1 where there is no edge."""
    edge_db: float
    """Height of that edge; 0 where there is none."""
    hole_share: float
    """Share of the spectrum of loud frames, above 1 kHz, that a codec has left out."""


def levels_db(samples_N: FloatArray, rate_hz: int) -> npt.NDArray[np.float64]:
    """Level of each 10 ms frame, less its mean, in dB relative to full scale, shape (T,)."""
    hop = max(1, rate_hz // FRAMES_PER_S)
    frames = samples_N[: len(samples_N) // hop * hop].reshape(-1, hop)
    levels: npt.NDArray[np.float64] = 10.0 * np.log10(np.var(frames, axis=1, dtype=np.float64) + 1e-12)
    return levels


def labelled(num_frames: int, turns: Sequence[Turn]) -> BoolArray:
    """Whether anybody speaks in each 10 ms frame, by the turns, shape (T,)."""
    mask = np.zeros(num_frames, np.bool_)
    for turn in turns:
        mask[int(turn.start_s * FRAMES_PER_S) : int(np.ceil(turn.end_s * FRAMES_PER_S))] = True
    return mask


def clipped(samples_NC: FloatArray, rate_hz: int) -> tuple[float, float]:
    """Share of samples at full scale, and runs of equal samples at the largest value a minute, in the worst channel.

    The runs tell of what was clipped first and made quieter later.
    """
    at_full_scale = float(np.mean(np.abs(samples_NC) >= 0.999, axis=0).max())
    runs_per_minute = 0.0
    for samples_N in samples_NC.T:
        magnitude_N = np.abs(samples_N)
        peak = float(magnitude_N.max(initial=0.0))
        if peak >= CLIP_MIN_PEAK:
            num_runs = sum(end - start >= CLIP_RUN for start, end in runs(magnitude_N >= peak * 0.9999))
            runs_per_minute = max(runs_per_minute, num_runs * 60.0 * rate_hz / len(samples_N))
    return at_full_scale, runs_per_minute


def runs(mask_N: BoolArray) -> npt.NDArray[np.int64]:
    """Stretches of a mask as (start, end), shape (R, 2)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_N.view(np.int8), [0]])))
    return edges.reshape(-1, 2)


def dropout_s(samples_N: FloatArray, rate_hz: int, turns: Sequence[Turn]) -> float:
    """Seconds of exact zeros inside turns, of stretches of `DROPOUT_S` or more that cut a sound off; the first and last
    0.1 s of turns are not looked at, for turns are not that exact."""
    zeros_R2 = runs(samples_N == 0.0)
    zeros_R2 = zeros_R2[zeros_R2[:, 1] - zeros_R2[:, 0] >= DROPOUT_S * rate_hz]
    if not len(zeros_R2):
        return 0.0
    inside_N = np.zeros(len(samples_N), np.bool_)
    for turn in turns:
        inside_N[int((turn.start_s + 0.1) * rate_hz) : max(0, int((turn.end_s - 0.1) * rate_hz))] = True
    beside = max(1, int(BESIDE_DROPOUT_S * rate_hz))
    loud = max(_rms(samples_N[inside_N]) * 10.0 ** (BESIDE_DROPOUT_DB / 20.0), LEAST_BESIDE)
    lost = 0
    for start, end in zeros_R2:
        if max(_rms(samples_N[max(0, start - beside) : start]), _rms(samples_N[end : end + beside])) > loud:
            lost += int(inside_N[start:end].sum())
    return lost / rate_hz


def _rms(samples_N: FloatArray) -> float:
    return float(np.sqrt(np.mean(samples_N**2, dtype=np.float64))) if len(samples_N) else 0.0


def band(samples_N: FloatArray, rate_hz: int, turns: Sequence[Turn] = ()) -> Band:
    """Where the spectrum breaks off, and what a codec has left out of it.

    A recording made at 8 kHz and stored at 16 kHz ends like a wall at 4 kHz; MP3 and Vorbis at low rates leave holes.
    What a telephone does falls off more gently and is none of it. Opus above 8 kbit/s leaves no such traces. The vowels
    of dull voices end like a wall, too, but their "s" and "f" lie above it, where a lower rate leaves nothing. Holes
    are looked for in what is said, where turns tell: a ringing tone has nothing between its harmonics either.
    """
    size = 1 << max(6, round(np.log2(SPECTRUM_S * rate_hz)))
    if len(samples_N) < 8 * size:
        return Band(1.0, 0.0, 0.0)
    starts = np.linspace(0, len(samples_N) - size, min(MAX_SPECTRA, len(samples_N) // (size // 2))).astype(np.int64)
    spoken_T = labelled(len(samples_N) * FRAMES_PER_S // rate_hz + 1, turns)[starts * FRAMES_PER_S // rate_hz]
    frames = samples_N[starts[:, None] + np.arange(size)] * np.hanning(size).astype(np.float32)
    power_TF = np.abs(scipy.fft.rfft(frames, axis=1)) ** 2
    hertz_F = np.fft.rfftfreq(size, 1.0 / rate_hz)
    voice_T = power_TF[:, (hertz_F >= 200.0) & (hertz_F < 1200.0)].sum(axis=1)
    loud_T = voice_T > np.quantile(voice_T, 0.7)
    loud_TF = power_TF[loud_T]
    if not len(loud_TF) or not loud_TF.any():
        return Band(1.0, 0.0, 0.0)
    share, edge_db = _edge(10.0 * np.log10(loud_TF.mean(axis=0, dtype=np.float64) + 1e-14), hertz_F.astype(np.float64))
    if edge_db and _hisses(power_TF, hertz_F.astype(np.float64), share * rate_hz / 2.0):
        share, edge_db = 1.0, 0.0
    top_hz = min(share, 0.95) * rate_hz / 2.0 - 200.0
    upper_TF = loud_TF[:, (hertz_F >= 1000.0) & (hertz_F < top_hz)]
    usual_F = np.median(upper_TF, axis=0)
    if (spoken_T & loud_T).sum() >= MIN_SPECTRA:
        upper_TF = upper_TF[spoken_T[loud_T]]
    holes = float((upper_TF < 10.0 ** (-HOLE_DB / 10.0) * usual_F).mean()) if upper_TF.size else 0.0
    return Band(share, edge_db, holes)


def _edge(spectrum_db_F: npt.NDArray[np.float64], hertz_F: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The steepest edge above which nothing comes any more: where, as a share of half the rate, and how high in dB."""
    width = max(4, int(EDGE_SHARE * len(spectrum_db_F)))
    first = max(width, int(np.searchsorted(hertz_F, 1500.0)))
    best, where = 0.0, 1.0
    for index in range(first, len(spectrum_db_F) - width - 1):
        below_db = spectrum_db_F[index - width : index].mean()
        above_db_F = spectrum_db_F[index + 2 :]
        height_db = below_db - above_db_F[:width].mean()
        if height_db > best and above_db_F.max() < below_db - EDGE_DB:
            best, where = height_db, hertz_F[index] / hertz_F[-1]
    return float(where), float(best)


def _hisses(power_TF: FloatArray, hertz_F: npt.NDArray[np.float64], edge_hz: float) -> bool:
    """Whether sounds come above an edge: in some frames, most of what there is, and not the same in all."""
    if edge_hz > EDGE_TOP_SHARE * hertz_F[-1] - EDGE_GUARD_HZ:
        return False
    above_F = hertz_F >= edge_hz + EDGE_GUARD_HZ
    above_T = power_TF[:, above_F].sum(axis=1)
    below_T = power_TF[:, (hertz_F >= 200.0) & (hertz_F < edge_hz)].sum(axis=1)
    quantised = QUANTISATION_POWER * above_F.sum() * float((np.hanning(2 * (len(hertz_F) - 1)) ** 2).sum())
    floor = max(float(np.quantile(above_T, 0.1)), quantised)
    hissing_T = (above_T > floor * 10.0 ** (FLOOR_DB / 10.0)) & (above_T > below_T * 10.0 ** (-HISS_DB / 10.0))
    return float(hissing_T.mean()) >= MIN_HISS_SHARE


def low_band_share(samples_N: FloatArray, rate_hz: int, turns: Sequence[Turn]) -> float:
    """Share of the energy between 20 and 1000 Hz that lies below 70 Hz, inside turns, above the background there."""
    hop = max(1, rate_hz // FRAMES_PER_S)
    speech_N = np.repeat(labelled(len(samples_N) // hop, turns), hop)
    size = 2048
    frequencies = np.fft.rfftfreq(size, 1.0 / rate_hz)
    low_bins = int(np.sum(frequencies < LOW_BAND_HZ))
    voice, background = (_spectrum(samples_N[: len(mask)][mask], size, low_bins) for mask in (speech_N, ~speech_N))
    if voice is None:
        return 0.0
    clean = np.maximum(voice - (background if background is not None else 0.0), 0.0)
    band = clean[(frequencies >= 20) & (frequencies < 1000)].sum()
    return float(clean[(frequencies >= 20) & (frequencies < LOW_BAND_HZ)].sum() / band) if band > 0 else 0.0


def _spectrum(samples_N: FloatArray, size: int, low_bins: int) -> npt.NDArray[np.float64] | None:
    """Mean power spectrum of the half of frames with least in the lowest bins, so without doors that slam and cars that
    pass; None of less than half a second."""
    if len(samples_N) < 4 * size:
        return None
    frames = samples_N[: len(samples_N) // size * size].reshape(-1, size) * np.hanning(size)
    power = np.abs(scipy.fft.rfft(frames, axis=1)) ** 2
    quietest = np.argsort(power[:, :low_bins].sum(axis=1))[: len(power) - len(power) // 2]
    mean: npt.NDArray[np.float64] = np.mean(power[quietest], axis=0)
    return mean


def voice_height(samples_N: FloatArray, rate_hz: int) -> float | None:
    """Pitch times centre of the speech band, relative to what is typical at the labelled rate.

    Voices at the labelled rate lie between 0.3 and 3; 44.1 kHz audio labelled 16 kHz lies near 0.2, for
    both factors sink with the rate. The product is independent of level and of the channel's response.

    Args:
        samples_N: Mono audio.
        rate_hz: Labelled rate.

    Returns:
        The figure, or None where the audio is short or too little of it is voiced to tell.
    """
    size = 2048
    frames = np.lib.stride_tricks.sliding_window_view(samples_N, size) if len(samples_N) >= 2 * rate_hz else None
    if frames is None or not samples_N.any():
        return None
    frames = frames[:: max(rate_hz // 40, len(frames) // MAX_FRAMES)]
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(size).astype(np.float32)
    power = np.abs(scipy.fft.rfft(frames, axis=1)) ** 2
    pitch_hz = _pitch_hz(frames[power.sum(axis=1) >= np.median(power.sum(axis=1))], rate_hz)
    if pitch_hz is None:
        return None
    # The centre of the dynamic range (90th less 10th percentile over time) of third-octave bands.
    frequencies = np.fft.rfftfreq(size, 1.0 / rate_hz)
    edges = np.searchsorted(frequencies, np.geomspace(60.0, 0.47 * rate_hz, 25))
    bands_db = 10.0 * np.log10(np.add.reduceat(power, edges, axis=1)[:, :-1] / np.diff(edges) + 1e-12)
    range_db = np.subtract(*np.quantile(bands_db, [0.9, 0.1], axis=0))
    centre_hz = np.exp(np.average(np.log(frequencies[edges[:-1]] * frequencies[edges[1:]]) / 2, weights=range_db))
    return float(pitch_hz / TYPICAL_PITCH_HZ * centre_hz / TYPICAL_CENTRE_HZ)


def _pitch_hz(frames: FloatArray, rate_hz: int) -> float | None:
    """Median pitch of windowed frames (first high peak of the autocorrelation), or None if few are voiced."""
    size = frames.shape[1]

    def autocorrelation(signal: FloatArray) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = scipy.fft.irfft(np.abs(scipy.fft.rfft(signal, 2 * size)) ** 2)[..., :size]
        return result

    window = autocorrelation(np.hanning(size).astype(np.float32))
    shortest, longest = int(rate_hz / 400), min(int(rate_hz / 25), size // 2)
    whole = autocorrelation(frames)
    lags = whole[:, shortest:longest] / (whole[:, :1] * window[shortest:longest] / window[0] + 1e-12)
    best = lags.max(axis=1, keepdims=True)
    inner = lags[:, 1:-1]
    peaks = (inner >= lags[:, :-2]) & (inner > lags[:, 2:]) & (inner >= 0.85 * best) & (best >= 0.5)
    voiced = peaks.any(axis=1)
    if voiced.mean() < MIN_VOICED_SHARE:
        return None
    return float(np.median(rate_hz / (shortest + 1 + peaks[voiced].argmax(axis=1))))
