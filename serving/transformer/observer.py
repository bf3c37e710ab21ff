"""Keeps statistics of some streams, never audio: for the drift check, where an address for them is given."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from serving.transformer import metrics
from voiceflow.adapters.stream_log import StreamLog, line_of
from voiceflow.config import DriftConfig
from voiceflow.errors import VoiceflowError

if TYPE_CHECKING:
    from serving.transformer.engine import Stream

logger = logging.getLogger("voiceflow.observer")
FLUSH_S, FORGET_EVERY_S = 2.0, 3600.0
MOST_ROWS = 10_000
"""Kept while the log cannot be written; the oldest go first."""


class Observer:
    """Watches a share of the streams of a process.

    Args:
        log: Where statistics go.
        config: Which share, how long streams must be, how long statistics are kept.
        seed: Of the draw; None for one of its own.
    """

    def __init__(self, log: StreamLog, config: DriftConfig, *, seed: int | None = None) -> None:
        self._log = log
        self._config = config
        self._draw = random.Random(seed)
        self._rows: deque[dict[str, Any]] = deque(maxlen=MOST_ROWS)
        self._forgot_s = 0.0
        self._told = ""

    def maybe_watch(self, stream: "Stream") -> None:
        """Watch a new stream, or not."""
        if self._draw.random() < self._config.sample_share:
            stream.session.watch()

    def note(self, stream: "Stream") -> None:
        """Keep what a watched stream sounded like since it was noted last; it goes on, or is about to leave."""
        try:
            statistics = stream.session.statistics()
        except Exception:  # a stream does not depend on it
            logger.exception("statistics of a stream could not be read")
            return
        if statistics.audio_s >= self._config.min_audio_s:
            engine = stream.engine
            model = {"model": engine.metadata.version, "digest": engine.digest, "variant": engine.variant}
            row = line_of(statistics.as_dict(), **model, now=time.time())
            self._rows.append(row)

    def note_long(self, streams: Iterable["Stream"]) -> None:
        """Note those that have gone on for a whole stretch."""
        for stream in streams:
            if stream.session.is_watched and stream.session.watched_s >= self._config.stretch_s:
                self.note(stream)

    async def flush(self) -> None:
        """Write what was noted; what cannot be written waits."""
        rows = list(self._rows)
        self._rows.clear()
        try:
            if rows:
                await asyncio.to_thread(self._log.add, rows)
                metrics.OBSERVED_STREAMS.inc(len(rows))
            if time.time() - self._forgot_s > FORGET_EVERY_S:
                self._forgot_s = time.time()
                await asyncio.to_thread(self._log.forget, before=time.time() - 86_400.0 * self._config.keep_days)
            self._told = ""
        except (VoiceflowError, OSError) as err:
            self._rows = deque([*rows, *self._rows], maxlen=MOST_ROWS)
            if str(err) != self._told:
                self._told = str(err)
                logger.warning("statistics of streams wait: %s", err)
