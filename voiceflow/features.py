"""Log-mel features, 80 bins every 10 ms: one implementation for training, files and streams."""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.signal

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


def mel_filters() -> FloatArray:
    """Triangular filters from 20 to 7600 Hz on the HTK mel scale.

    Returns:
        Weights of shape (257, 80), float32.

    Source:
        Young et al., The HTK Book, equation 5.13.
    """
    low_mel, high_mel = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (20.0, 7600.0))
    edges_hz = 700.0 * (10.0 ** (np.linspace(low_mel, high_mel, NUM_MEL_BINS + 2) / 2595.0) - 1.0)
    bins_hz = np.fft.rfftfreq(FFT_SAMPLES, 1.0 / SAMPLE_RATE_HZ)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


_WINDOW = np.hanning(WINDOW_SAMPLES + 1)[:-1].astype(np.float32)
_FILTERS = mel_filters()
OFFSET_CUTOFF_HZ = 2.0
"""Below this, sound is taken for a microphone's constant offset and removed."""
_OFFSET_FILTER = (
    np.array([1.0, -1.0], np.float32),
    np.array([1.0, -np.exp(-2.0 * np.pi * OFFSET_CUTOFF_HZ / SAMPLE_RATE_HZ)], np.float32),
)


def log_mel(samples: FloatArray) -> FloatArray:
    """Log-mel energies of audio that carries its 240 samples of history in front.

    Args:
        samples: Mono float32 at 16 kHz, shape (..., 240 + 160 T).

    Returns:
        Natural logarithm of mel energy, floored at 1e-8, shape (..., T, 80), float32.
    """
    num_frames = (samples.shape[-1] - HISTORY_SAMPLES) // FRAME_HOP_SAMPLES
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW_SAMPLES, axis=-1)
    frames = frames[..., ::FRAME_HOP_SAMPLES, :][..., :num_frames, :]
    spectrum = scipy.fft.rfft(frames * _WINDOW, n=FFT_SAMPLES, axis=-1)
    power = spectrum.real**2 + spectrum.imag**2
    # einsum would be slower; a matrix product of 8 rows gives the same bits for the same 8 rows.
    mel = (power @ _FILTERS) / np.float32(WINDOW_SAMPLES)
    features: FloatArray = np.log(np.maximum(mel, np.float32(ENERGY_FLOOR)))
    return features


class FeatureRows:
    """Features of many streams, one step of each at a time: the same bits as a `FeatureStream` for each.

    Args:
        capacity: Rows to begin with.
    """

    def __init__(self, capacity: int) -> None:
        self.columns: dict[str, npt.NDArray[Any]] = {
            "history": np.zeros((0, HISTORY_SAMPLES), np.float32),
            "offset_state": np.zeros((0, 1), np.float32),
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
        begin = ~self.columns["begun"][rows_B]
        state_B1 = self.columns["offset_state"][rows_B]
        state_B1[begin] = -samples_BN[begin, :1]
        cleaned_BN, state_B1 = scipy.signal.lfilter(*_OFFSET_FILTER, samples_BN, axis=1, zi=state_B1)
        if lengths_B is not None:
            cleaned_BN[np.arange(STEP_SAMPLES) >= lengths_B[:, None]] = 0.0
        blocks_BN = np.concatenate([self.columns["history"][rows_B], cleaned_BN], axis=1)
        self.columns["history"][rows_B] = blocks_BN[:, -HISTORY_SAMPLES:]
        self.columns["offset_state"][rows_B] = state_B1
        self.columns["begun"][rows_B] = True
        return log_mel(blocks_BN).reshape(len(rows_B), STEP_FEATURES)


class FeatureStream:
    """Cuts one stream into model steps and computes each step's features.

    A step is always computed from exactly 8 frames, so features are the same bits
    whatever the packet sizes were.
    """

    def __init__(self) -> None:
        self._pending = np.zeros(HISTORY_SAMPLES, np.float32)
        self._offset_state: FloatArray | None = None
        self.num_samples = 0
        """Samples received so far."""

    def push(self, samples_N: FloatArray) -> list[FloatArray]:
        """Take 16 kHz samples, return the features of each step completed, shape (640,)."""
        self.num_samples += len(samples_N)
        self._pending = np.concatenate([self._pending, self._without_offset(samples_N)])
        steps = []
        start = 0
        while len(self._pending) - start >= HISTORY_SAMPLES + STEP_SAMPLES:
            block_N = self._pending[start : start + HISTORY_SAMPLES + STEP_SAMPLES]
            steps.append(log_mel(block_N).reshape(STEP_FEATURES))
            start += STEP_SAMPLES
        self._pending = self._pending[start:]
        return steps

    def _without_offset(self, samples_N: FloatArray) -> FloatArray:
        """Remove what is constant, from the first sample on: an offset is no sound."""
        if len(samples_N) == 0:
            return samples_N
        if self._offset_state is None:
            self._offset_state = -samples_N[:1]
        cleaned_N, self._offset_state = scipy.signal.lfilter(*_OFFSET_FILTER, samples_N, zi=self._offset_state)
        cleaned: FloatArray = cleaned_N
        return cleaned

    def flush(self) -> list[FloatArray]:
        """Complete a partial last step with silence and return it; empty if there is none."""
        missing = -(len(self._pending) - HISTORY_SAMPLES) % STEP_SAMPLES
        if len(self._pending) == HISTORY_SAMPLES:
            return []
        received = self.num_samples
        self._pending = np.concatenate([self._pending, np.zeros(missing, np.float32)])
        steps = self.push(np.zeros(0, np.float32))
        self.num_samples = received
        return steps


def step_features(samples_N: FloatArray) -> FloatArray:
    """Features of a whole recording, shape (steps, 640); the last step is completed with silence."""
    stream = FeatureStream()
    steps = stream.push(samples_N) + stream.flush()
    return np.stack(steps) if steps else np.zeros((0, STEP_FEATURES), np.float32)
