"""Log-mel features, 80 bins every 10 ms: one implementation for training, files and streams."""

import importlib.util
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.timebase import FRAME_HOP_SAMPLES, SAMPLE_RATE_HZ, STEP_FRAMES, STEP_SAMPLES

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

NUM_MEL_BINS = 80
WINDOW_SAMPLES = 400
"""A frame sees 25 ms: the 240 samples before its 10 ms hop and the hop itself."""
HISTORY_SAMPLES = WINDOW_SAMPLES - FRAME_HOP_SAMPLES
FFT_SAMPLES = 512
STEP_FEATURES = NUM_MEL_BINS * STEP_FRAMES
"""Features of one model step: 8 frames of 80 bins, flat."""
ENERGY_FLOOR = 1e-8
BLOCK_ROWS = 16
"""Streams whose spectra are computed together: what is in hand stays in a core's cache."""


def _mel_edges_hz() -> npt.NDArray[np.float64]:
    low_mel, high_mel = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (20.0, 7600.0))
    edges_hz: npt.NDArray[np.float64] = 700.0 * (
        10.0 ** (np.linspace(low_mel, high_mel, NUM_MEL_BINS + 2) / 2595.0) - 1
    )
    return edges_hz


MEL_CENTRES_HZ = _mel_edges_hz()[1:-1]
"""Where each bin is most sensitive, shape (80,)."""


def mel_filters() -> FloatArray:
    """Triangular filters from 20 to 7600 Hz on the HTK mel scale.

    Returns:
        Weights of shape (257, 80), float32.

    Source:
        Young et al., The HTK Book, equation 5.13.
    """
    edges_hz = _mel_edges_hz()
    bins_hz = np.fft.rfftfreq(FFT_SAMPLES, 1.0 / SAMPLE_RATE_HZ)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _load_rfft() -> Callable[[FloatArray], npt.NDArray[np.complex64]]:
    """scipy's transform of the last axis (twice as fast as numpy's here), without what `import scipy.fft` brings along:
    250 modules and 20 MB in each process that serves."""
    package = importlib.util.find_spec("scipy")
    folder = Path(next(iter(package.submodule_search_locations or ()))) if package is not None else Path()
    found = sorted((folder / "fft" / "_pocketfft").glob(f"pypocketfft*{EXTENSION_SUFFIXES[0]}"))
    if not found:  # another release of scipy keeps it elsewhere
        import scipy.fft

        return lambda frames: scipy.fft.rfft(frames, axis=-1)
    loader = ExtensionFileLoader("pypocketfft", str(found[0]))
    spec = importlib.util.spec_from_loader("pypocketfft", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    transform = module.r2c
    return lambda frames: transform(frames, axes=(frames.ndim - 1,))


_rfft = _load_rfft()
_WINDOW = np.hanning(WINDOW_SAMPLES + 1)[:-1].astype(np.float32)
_FILTERS = mel_filters()
OFFSET_CUTOFF_HZ = 2.0
"""Below this, sound is taken for a microphone's constant offset and removed."""
_OFFSET_DECAY = np.exp(-2.0 * np.pi * OFFSET_CUTOFF_HZ / SAMPLE_RATE_HZ)
_BLOCK = 32
_NUM_BLOCKS = STEP_SAMPLES // _BLOCK


def _decays(decay: float, size: int, *, begin: int) -> FloatArray:
    """How much of an earlier value is left in a later one, (earlier, later); none before `begin` places later."""
    later = np.arange(size) - np.arange(size)[:, None]
    return np.where(later >= begin, decay ** np.maximum(0, later - begin), 0.0).astype(np.float32)


_IN_BLOCK = _decays(_OFFSET_DECAY, _BLOCK, begin=0)
_TO_BLOCK = _decays(_OFFSET_DECAY**_BLOCK, _NUM_BLOCKS, begin=1)
_FROM_BLOCK = (_OFFSET_DECAY ** np.arange(1, _BLOCK + 1)).astype(np.float32)


def remove_offset(samples_BN: FloatArray, state_B: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A step of each of several streams without what is constant in it: y[n] = x[n] - x[n-1] + r y[n-1].

    The recursion is written as products with fixed matrices, in blocks of 32 samples and over the blocks,
    whose bits do not depend on how many streams there are.

    Args:
        samples_BN: Shape (B, 1280).
        state_B: r y[n-1] - x[n-1] of the sample before; minus the first sample where a stream begins.

    Returns:
        The step of each, shape (B, 1280); and the state after it.
    """
    changes_BN = np.diff(samples_BN, axis=1, prepend=-state_B[:, None])
    parts_BKL = np.matmul(changes_BN.reshape(-1, _NUM_BLOCKS, _BLOCK), _IN_BLOCK)
    carried_BK = np.matmul(parts_BKL[:, None, :, -1], _TO_BLOCK)[:, 0]
    parts_BKL += carried_BK[:, :, None] * _FROM_BLOCK
    cleaned_BN: FloatArray = parts_BKL.reshape(-1, STEP_SAMPLES)
    return cleaned_BN, cleaned_BN[:, -1] * np.float32(_OFFSET_DECAY) - samples_BN[:, -1]


def log_mel(samples: FloatArray) -> FloatArray:
    """Log-mel energies of audio that carries its 240 samples of history in front.

    Args:
        samples: Mono float32 at 16 kHz, shape (..., 240 + 160 T).

    Returns:
        Natural logarithm of mel energy, floored at 1e-8, shape (..., T, 80), float32.
    """
    num_frames = (samples.shape[-1] - HISTORY_SAMPLES) // FRAME_HOP_SAMPLES
    rows_BN = samples.reshape(-1, samples.shape[-1])
    frames_BTN = np.lib.stride_tricks.sliding_window_view(rows_BN, WINDOW_SAMPLES, axis=-1)
    frames_BTN = frames_BTN[:, ::FRAME_HOP_SAMPLES][:, :num_frames]
    mel_BTF = np.empty((len(rows_BN), num_frames, NUM_MEL_BINS), np.float32)
    padded = np.zeros((min(BLOCK_ROWS, len(rows_BN)), num_frames, FFT_SAMPLES), np.float32)
    for start in range(0, len(rows_BN), BLOCK_ROWS):
        block = frames_BTN[start : start + BLOCK_ROWS]
        windowed = padded[: len(block)]
        np.multiply(block, _WINDOW, out=windowed[..., :WINDOW_SAMPLES])
        spectrum = _rfft(windowed)
        power = spectrum.real**2
        power += spectrum.imag**2
        # einsum would be slower; a matrix product of 8 rows gives the same bits for the same 8 rows.
        np.matmul(power, _FILTERS, out=mel_BTF[start : start + BLOCK_ROWS])
    mel_BTF /= np.float32(WINDOW_SAMPLES)
    np.log(np.maximum(mel_BTF, np.float32(ENERGY_FLOOR), out=mel_BTF), out=mel_BTF)
    features: FloatArray = mel_BTF.reshape(*samples.shape[:-1], num_frames, NUM_MEL_BINS)
    return features


class FeatureRows:
    """Features of many streams, one step of each at a time: the same bits as a `FeatureStream` for each.

    Args:
        capacity: Rows to begin with.
    """

    def __init__(self, capacity: int) -> None:
        self.columns: dict[str, npt.NDArray[Any]] = {
            "history": np.zeros((0, HISTORY_SAMPLES), np.float32),
            "offset_state": np.zeros(0, np.float32),
            "begun": np.zeros(0, np.bool_),
        }
        """What each stream needs for its next step; zeros before it begins."""
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for so many rows in all; those there keep what they hold."""
        for name, column in self.columns.items():
            extra = np.zeros((capacity - len(column), *column.shape[1:]), column.dtype)
            self.columns[name] = np.concatenate([column, extra])

    def clear(self, row: int) -> None:
        """A row for a stream that has not begun."""
        for column in self.columns.values():
            column[row] = 0

    def push(self, rows_B: IntArray, samples_BN: FloatArray, lengths_B: IntArray | None = None) -> FloatArray:
        """The features of one more step of some streams.

        Args:
            rows_B: Their rows, each once.
            samples_BN: A step of each, shape (B, 1280).
            lengths_B: Samples heard where some end within the step; what follows is silence.

        Returns:
            Shape (B, 640).
        """
        begin_B = ~self.columns["begun"][rows_B]
        state_B = np.where(begin_B, -samples_BN[:, 0], self.columns["offset_state"][rows_B])
        cleaned_BN, state_B = remove_offset(samples_BN, state_B)
        if lengths_B is not None:
            cleaned_BN[np.arange(STEP_SAMPLES) >= lengths_B[:, None]] = 0.0
        blocks_BN = np.concatenate([self.columns["history"][rows_B], cleaned_BN], axis=1)
        self.columns["history"][rows_B] = blocks_BN[:, -HISTORY_SAMPLES:]
        self.columns["offset_state"][rows_B] = state_B
        self.columns["begun"][rows_B] = True
        return log_mel(blocks_BN).reshape(len(rows_B), STEP_FEATURES)


class FeatureStream:
    """Cuts one stream into model steps and computes each step's features.

    A step is always computed as a whole, so features are the same bits whatever the packet sizes were.
    """

    def __init__(self) -> None:
        self._rows = FeatureRows(1)
        self._pending = np.zeros(0, np.float32)
        self.num_samples = 0
        """Samples received so far."""

    def push(self, samples_N: FloatArray) -> list[FloatArray]:
        """Take 16 kHz samples, return the features of each step completed, shape (640,)."""
        self.num_samples += len(samples_N)
        pending_N = np.concatenate([self._pending, samples_N])
        whole = len(pending_N) // STEP_SAMPLES * STEP_SAMPLES
        self._pending = pending_N[whole:]
        return [self._step(step_N) for step_N in pending_N[:whole].reshape(-1, STEP_SAMPLES)]

    def flush(self) -> list[FloatArray]:
        """Complete a partial last step with silence and return it; empty if there is none."""
        length = len(self._pending)
        if length == 0:
            return []
        step_N = np.pad(self._pending, (0, STEP_SAMPLES - length))
        self._pending = np.zeros(0, np.float32)
        return [self._step(step_N, np.array([length]))]

    def _step(self, step_N: FloatArray, lengths_B: IntArray | None = None) -> FloatArray:
        features_F: FloatArray = self._rows.push(_FIRST_ROW, step_N[None], lengths_B)[0]
        return features_F


_FIRST_ROW = np.zeros(1, np.int64)


def step_features(samples_N: FloatArray) -> FloatArray:
    """Features of a whole recording, shape (steps, 640); the last step is completed with silence."""
    stream = FeatureStream()
    steps = stream.push(samples_N) + stream.flush()
    return np.stack(steps) if steps else np.zeros((0, STEP_FEATURES), np.float32)
