"""Holds all streams of a process and scores them together, one batch a tick."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from serving.transformer import metrics
from voiceflow.config import StreamingConfig
from voiceflow.contract import ModelMetadata
from voiceflow.errors import StreamError
from voiceflow.runtime import StepModel
from voiceflow.streaming.batch import Batch, gather, scatter
from voiceflow.streaming.session import Session, StreamSettings

logger = logging.getLogger("voiceflow.engine")
Score = Callable[[Batch], Awaitable[tuple[np.ndarray, np.ndarray]]]


@dataclass(eq=False)
class Stream:
    """A session in the engine."""

    session: Session
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the session has been scored; the reader of answers clears it."""
    failure: Exception | None = None
    """Why the engine gave up on it."""


class Engine:
    """Scores streams in batches.

    Args:
        metadata: What the model file says of itself.
        score: One batched step: in this process, or a call to a predictor.
        config: Tick, batch and stream limits.
    """

    def __init__(self, metadata: ModelMetadata, score: Score, config: StreamingConfig) -> None:
        self.metadata = metadata
        self.config = config
        self._score = score
        self._streams: dict[int, Stream] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def local(cls, model: StepModel, config: StreamingConfig) -> "Engine":
        """An engine that scores in this process, in the event loop: a step is a millisecond or less a stream."""

        async def score(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
            return model.step(*batch)

        return cls(model.metadata, score, config)

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    def open(self, settings: StreamSettings) -> Stream:
        """Take in a stream.

        Raises:
            StreamError: `too_many`, or settings that are not served.
        """
        if len(self._streams) >= self.config.max_streams:
            raise StreamError(
                "too_many", f"this server holds {self.config.max_streams} streams already; try again later"
            )
        return self.adopt(Session(settings, self.metadata))

    def adopt(self, session: Session) -> Stream:
        """Take in a session that exists already."""
        stream = Stream(session)
        self._streams[id(stream)] = stream
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._work.set()
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        self._streams.pop(id(stream), None)

    def wake(self) -> None:
        """Tell that some session has audio to score."""
        self._work.set()

    async def settle(self, stream: Stream) -> None:
        """Wait until everything the stream has to score is scored.

        Raises:
            Exception: What made the engine give up on it.
        """
        self.wake()
        while stream.failure is None and stream.session.chunk_to_score() is not None:
            stream.changed.clear()
            await stream.changed.wait()
        if stream.failure is not None:
            raise stream.failure

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            started = time.perf_counter()
            streams = list(self._streams.values())
            by_session = {id(stream.session): stream for stream in streams}
            ready, batch = gather([stream.session for stream in streams], max_batch=self.config.max_batch)
            if batch is None:
                self._work.clear()
                continue
            chosen = [by_session[id(session)] for session in ready]
            try:
                with metrics.INFERENCE_LATENCY.time():
                    activity, state = await self._score(batch)
                scatter(ready, activity, state)
                metrics.INFERENCE_REQUESTS.inc()
                metrics.BATCH_SIZE.observe(len(ready))
            except Exception as err:  # a batch that fails ends its streams, never the engine
                logger.exception("a step of %d streams failed", len(ready))
                metrics.INFERENCE_ERRORS.inc()
                for stream in chosen:
                    stream.failure = err
                    self.leave(stream)
            for stream in chosen:
                stream.changed.set()
                if id(stream) in self._streams:
                    # Served streams go to the end of the line, so that max_batch starves nobody.
                    self._streams[id(stream)] = self._streams.pop(id(stream))
            # A tick lets packets gather; a backlog is worked off without waiting.
            pause_s = self.config.tick_ms / 1000.0 - (time.perf_counter() - started)
            behind = any(stream.session.waiting_s > 0.5 for stream in chosen)
            await asyncio.sleep(0.0 if behind else max(0.0, pause_s))
