"""Ogg/Opus and WebM/Opus as browsers send it, decoded beside the event loop."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from voiceflow.errors import StreamError
from voiceflow.timebase import SAMPLE_RATE_HZ

FORMATS = {"ogg_opus": "ogg", "webm_opus": "matroska"}
"""FFmpeg's demuxers by encoding."""
MAX_QUEUED_BYTES = 512 * 1024
# What would make FFmpeg collect seconds of sound before it says what it found.
OPTIONS = {"probesize": "32", "analyzeduration": "0"}


class OpusDecoder:
    """Decodes one stream in a thread of its own: packets of any size in, mono float32 at 16 kHz out.

    Args:
        encoding: A key of `FORMATS`.
        on_samples: Called in the event loop with samples, in order.
        on_end: Called once in the event loop, at the end of the stream, with what went wrong if anything did.
    """

    def __init__(
        self,
        encoding: str,
        on_samples: Callable[[np.ndarray], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self.encoding = encoding
        self._on_samples = on_samples
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._packets: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self._is_over = self._is_dropped = False
        self._num_queued = 0
        self._thread = threading.Thread(target=self._decode, name=f"decode {encoding}", daemon=True)
        self._thread.start()

    @property
    def is_behind(self) -> bool:
        """Whether more waits to be decoded than should."""
        return self._num_queued > MAX_QUEUED_BYTES

    def feed(self, data: bytes) -> None:
        """More bytes."""
        if data:
            self._num_queued += len(data)
            self._packets.put(data)

    def end(self) -> None:
        """No more bytes will come; `on_end` follows once all are decoded."""
        self._packets.put(b"")

    def drop(self) -> None:
        """Nobody wants the rest."""
        self._is_dropped = True
        self._packets.put(b"")

    def read(self, size: int = -1) -> bytes:
        """For FFmpeg: some bytes, waiting for them; none at the end."""
        if not self._rest and not self._is_over:
            self._rest = self._packets.get()
            self._is_over = not self._rest
        data, self._rest = self._rest[:size], self._rest[size:]
        self._num_queued -= len(data)
        return data

    def _decode(self) -> None:
        failure: Exception | None = None
        try:
            self._decode_all()
        except Exception as err:  # whatever FFmpeg makes of a client's bytes
            reason = getattr(err, "strerror", None) or str(err)
            failure = StreamError("bad_audio", f"expected {self.encoding}; it cannot be decoded: {reason}")
        if not self._is_dropped:
            self._call(self._on_end, failure)

    def _decode_all(self) -> None:
        import av

        container: Any
        with av.open(self, mode="r", format=FORMATS[self.encoding], options=OPTIONS, buffer_size=4096) as container:
            if not container.streams.audio:
                raise ValueError("no sound in it")
            resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
            for frame in container.decode(container.streams.audio[0]):
                if self._is_dropped:
                    return
                for resampled in resampler.resample(frame):
                    self._call(self._on_samples, resampled.to_ndarray()[0].astype(np.float32))
            for resampled in resampler.resample(None):
                self._call(self._on_samples, resampled.to_ndarray()[0].astype(np.float32))

    def _call(self, function: Callable[..., None], value: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:  # the loop is gone
            self._is_dropped = True
