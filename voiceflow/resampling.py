"""Resamples live audio to 16 kHz, each sample as soon as the audio it belongs to is here.

A filter that looks ahead keeps back what it has not seen all of: soxr's holds 36 ms at 48 kHz and 115 ms at 8 kHz, and
the answer to a packet comes with the next one. This one looks back only: what it says is late by half its length,
1.5 ms at 48 kHz and 3 ms at 8 kHz, a fraction of the 10 ms between two frames.

Shapes: W input samples that a block of output depends on.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.timebase import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]

BLOCK = 32
"""Samples of output that are computed together (2 ms); blocks are the same whatever the packets are."""
EDGE, WIDTH = 0.975, 0.15
"""Middle and width of the filter's slope, as shares of half the lower rate: 7.2 to 8.4 kHz where that is 8 kHz."""
STOP_DB = 60.0
"""What is beyond the slope is that much softer."""


class Filter:
    """A low pass as matrices from input to blocks of output.

    The impulse response is a sinc under Kaiser's window.

    Args:
        rate_hz: Of the input.

    Source:
        Kaiser, Nonrecursive digital filter design using the I0-sinh window function, 1974.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
        self.period, self.parts = rate_hz // divisor, SAMPLE_RATE_HZ // divisor
        """So many input samples take as long as so many of output."""
        half_hz = min(rate_hz, SAMPLE_RATE_HZ) / 2.0
        self._cutoff_hz = EDGE * half_hz
        self.length_s = (STOP_DB - 7.95) / (14.36 * WIDTH * half_hz)
        self.history = math.ceil(self.length_s * rate_hz) + 1
        """Input samples before a block that it depends on."""
        self.width = self.history + math.ceil(BLOCK * rate_hz / SAMPLE_RATE_HZ) + 1
        self.cycle = self.parts // math.gcd(BLOCK * self.period, self.parts)
        """Blocks after which one begins as another did, between the same two input samples."""
        self._matrices: dict[int, FloatArray] = {}

    def place(self, block: int) -> tuple[int, int]:
        """The input sample at which a block begins, rounded down; and what was cut off, in `parts` of a sample."""
        return divmod(block * BLOCK * self.period, self.parts)

    def matrix(self, rest: int) -> FloatArray:
        """From the `width` input samples from `history` before a block to its output, shape (W, 32)."""
        if rest not in self._matrices:
            middle_s = (np.arange(BLOCK) + 1.0) / SAMPLE_RATE_HZ - self.length_s / 2.0
            input_s = (np.arange(self.width) - self.history - rest / self.parts) / self.rate_hz
            apart_s = middle_s - input_s[:, None]
            share = 2.0 * apart_s / self.length_s
            beta = 0.1102 * (STOP_DB - 8.7)
            window = np.where(np.abs(share) < 1.0, np.i0(beta * np.sqrt(np.maximum(0.0, 1.0 - share**2))), 0.0)
            response = np.sinc(2.0 * self._cutoff_hz * apart_s) * window
            self._matrices[rest] = (response / response.sum(axis=0)).astype(np.float32)
        return self._matrices[rest]


_filter = cache(Filter)


class StreamResampler:
    """Resamples one live stream to 16 kHz; the result does not depend on packet sizes.

    Args:
        rate_hz: Of the stream.
    """

    def __init__(self, rate_hz: int) -> None:
        self._filter = None if rate_hz == SAMPLE_RATE_HZ else _filter(rate_hz)
        history = 0 if self._filter is None else self._filter.history
        self._heard_N = np.zeros(history, np.float32)
        """Input that is still needed; at first the silence before the stream."""
        self._first = -history
        """Number of its first sample."""
        self._num_out = 0

    def push(self, samples_N: FloatArray, *, last: bool = False) -> FloatArray:
        """Take samples at the stream's rate, return what is ready at 16 kHz.

        Args:
            samples_N: New samples, any number.
            last: Whether the stream ends here, so that its last samples do not wait for a whole block.
        """
        filter_ = self._filter
        if filter_ is None:
            return samples_N
        self._heard_N = np.concatenate([self._heard_N, samples_N])
        num_heard = self._first + len(self._heard_N)
        ready = num_heard * SAMPLE_RATE_HZ // filter_.rate_hz
        begin = self._num_out // BLOCK
        end = -(-ready // BLOCK) if last else ready // BLOCK
        if end <= begin:
            return np.zeros(0, np.float32)
        out_BN = self._blocks(filter_, begin, end)
        out_N = out_BN.reshape(-1)[self._num_out - begin * BLOCK :]
        if last:
            out_N = out_N[: ready - self._num_out]
        self._num_out += len(out_N)
        # What is forgotten is a whole number of periods: another one can begin there.
        spare = filter_.place(end)[0] - filter_.history - self._first
        spare = max(0, spare // filter_.period * filter_.period)
        self._heard_N = self._heard_N[spare:].copy()
        self._first += spare
        return out_N

    def _blocks(self, filter_: Filter, begin: int, end: int) -> FloatArray:
        begins_B = np.arange(begin, end) * (BLOCK * filter_.period) // filter_.parts - filter_.history - self._first
        room = int(begins_B[-1]) + filter_.width - len(self._heard_N)
        padded_N = np.concatenate([self._heard_N, np.zeros(max(0, room), np.float32)])
        step = padded_N.strides[0]
        shape = (len(padded_N) - filter_.width + 1, filter_.width)
        windows_BW = np.lib.stride_tricks.as_strided(padded_N, shape, (step, step))[begins_B]
        out_BN = np.empty((end - begin, BLOCK), np.float32)
        for number in range(min(filter_.cycle, end - begin)):
            alike = slice(number, None, filter_.cycle)
            # A row at a time: the bits of a product of many rows would depend on how many there are.
            matrix_WN = filter_.matrix(filter_.place(begin + number)[1])
            out_BN[alike] = np.matmul(windows_BW[alike, None], matrix_WN)[:, 0]
        return out_BN

    def to_plain(self) -> dict[str, Any]:
        """What another resampler needs to go on from here, for `from_plain`."""
        silence = max(0, -self._first)
        return {
            "heard": self._heard_N[silence:].tobytes(),
            "pending": b"",
            "num_forgotten": self._first + silence,
            "num_out": self._num_out,
        }

    def from_plain(self, plain: dict[str, Any]) -> None:
        """Go on where another resampler was, of this release or of one that used soxr."""
        filter_ = self._filter
        if filter_ is None:
            return
        heard = np.frombuffer(plain["heard"] + plain["pending"], np.float32)
        before = filter_.history if plain["num_forgotten"] == 0 else 0
        self._heard_N = np.concatenate([np.zeros(before, np.float32), heard])
        self._first = plain["num_forgotten"] - before
        self._num_out = plain["num_out"]
