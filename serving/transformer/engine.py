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
from voiceflow.streaming.lanes import Batch, Lane, Lanes
from voiceflow.streaming.session import StreamSettings

logger = logging.getLogger("voiceflow.engine")
Score = Callable[[Batch], Awaitable[tuple[np.ndarray, np.ndarray]]]


@dataclass(eq=False)
class Stream:
    """A lane in the engine."""

    session: Lane
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
        self._lanes = Lanes(metadata)
        self._streams: dict[int, Stream] = {}
        """By row of their lanes."""
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
        return self._take_in(self._lanes.open(settings))

    def twin(self, stream: Stream) -> Stream:
        """Another stream that has heard what this one has, to look at its end while it goes on."""
        return self._take_in(self._lanes.twin(stream.session))

    def _take_in(self, lane: Lane) -> Stream:
        stream = self._streams[lane.row] = Stream(lane)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._work.set()
        return stream

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        if self._streams.get(stream.session.row) is stream:
            del self._streams[stream.session.row]
            self._lanes.leave(stream.session)

    def wake(self) -> None:
        """Tell that some session has audio to score."""
        self._work.set()

    async def settle(self, stream: Stream) -> None:
        """Wait until everything the stream has to score is scored.

        Raises:
            Exception: What made the engine give up on it.
        """
        self.wake()
        while stream.failure is None and stream.session.has_work:
            stream.changed.clear()
            await stream.changed.wait()
        if stream.failure is not None:
            raise stream.failure

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            started = time.perf_counter()
            batch = self._lanes.gather(max_batch=self.config.max_batch)
            if batch is None:
                self._work.clear()
                continue
            try:
                with metrics.INFERENCE_LATENCY.time():
                    activity, state = await self._score(batch)
                scored = self._lanes.scatter(activity, state)
                metrics.INFERENCE_REQUESTS.inc()
                metrics.BATCH_SIZE.observe(len(batch[0]))
            except Exception as err:  # a batch that fails ends its streams, never the engine
                logger.exception("a step of %d streams failed", len(batch[0]))
                metrics.INFERENCE_ERRORS.inc()
                scored = self._lanes.give_up()
                for lane in scored:
                    self._streams[lane.row].failure = err
            for stream in [self._streams[lane.row] for lane in scored]:
                stream.changed.set()
                if stream.failure is not None:
                    self.leave(stream)
            # A tick lets packets gather; a backlog, or a look past an end, is worked off without waiting.
            pause_s = self.config.tick_ms / 1000.0 - (time.perf_counter() - started)
            behind = bool(self._lanes.ending) or self._lanes.most_waiting_s > 0.5
            await asyncio.sleep(0.0 if behind else max(0.0, pause_s))
