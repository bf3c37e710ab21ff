"""Holds all streams of a process and scores them together, one batch a tick."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from serving.transformer import metrics
from voiceflow.config import StreamingConfig
from voiceflow.contract import ModelMetadata
from voiceflow.runtime import StepModel
from voiceflow.streaming.lane import Lane
from voiceflow.streaming.lanes import Batch, Lanes
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import STEP_S, STEP_SAMPLES

logger = logging.getLogger("voiceflow.engine")
Score = Callable[[Batch], Awaitable[tuple[np.ndarray, np.ndarray]]]
OBSERVED = 8
"""Streams of a step, about, whose latency is observed for metrics."""
TRIED, TRIALS = 64, 9
PACKETS_COST = 300e-6
"""Of the packets and answers of one stream, ten a second each (`make bench`)."""
ENOUGH_STREAMS = 32
"""So many streams say what one takes."""
READ_EVERY_S = 0.05
LOAD_OVER_S, LATE_OVER_S = 1.0, 0.5
"""The load, and how late answers are, are running means over about so long."""


@dataclass(eq=False)
class Stream:
    """A lane in the engine."""

    session: Lane
    on_scored: Callable[[], None] | None = None
    """Called after each of its steps, and when the engine gives up on it."""
    failure: Exception | None = None
    """Why the engine gave up on it."""
    heard_s: float | None = None
    """When the audio of the step that waits came, by the loop's clock; of the first, if several wait."""
    _settled: asyncio.Future[None] | None = None

    def scored(self) -> None:
        """Tell those who wait for it."""
        if self._settled is not None and (self.failure is not None or not self.session.has_work):
            if not self._settled.done():
                self._settled.set_result(None)
            self._settled = None
        if self.on_scored is not None:
            self.on_scored()

    async def settle(self) -> None:
        """Wait until everything it has to score is scored.

        Raises:
            Exception: What made the engine give up on it.
        """
        while self.failure is None and self.session.has_work:
            if self._settled is None:
                self._settled = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._settled)
        if self.failure is not None:
            raise self.failure


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
        self.load = 0.0
        """Share of the time in which this process had work to do, or wanted to and was not let."""
        self.late_s = 0.0
        """How long answers come after the audio that they need, of late."""
        self._cost = 0.0
        """Share of the time that one stream takes among many; measured before the first one comes."""
        self._told_s = 0.0
        self._score = score
        self._lanes = Lanes(metadata)
        self._streams: dict[int, Stream] = {}
        """By row of their lanes."""
        self._aside: set[int] = set()
        """Rows of streams that are not counted."""
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def local(cls, model: StepModel, config: StreamingConfig) -> "Engine":
        """An engine that scores in this process, in the event loop: a step is a millisecond or less a stream."""

        async def score(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
            return model.step(*batch)

        engine = cls(model.metadata, score, config)
        engine._cost = measure_cost(model)
        return engine

    @property
    def capacity(self) -> int:
        """Streams that this process can hold, by what one was measured to take at first, and by what they take now."""
        num_streams = self.num_streams
        cost = max(self._cost, self.load / num_streams if num_streams >= ENOUGH_STREAMS else 0.0)
        return min(self.config.max_streams, int(self.config.max_load / cost)) if cost else self.config.max_streams

    @property
    def num_streams(self) -> int:
        """Streams that are open, less those set aside."""
        return len(self._streams) - len(self._aside)

    def set_aside(self, stream: Stream, *, is_aside: bool = True) -> None:
        """Do not count a stream among those held: a look at the end of another, or one that waits for its client."""
        if is_aside:
            self._aside.add(stream.session.row)
        else:
            self._aside.discard(stream.session.row)

    def open(self, settings: StreamSettings, *, keep_s: float | None = None) -> Stream:
        """Take in a stream; `keep_s` as for `Lanes.open`.

        Raises:
            StreamError: Settings that are not served.
        """
        return self._take_in(self._lanes.open(settings, keep_s=keep_s, now_s=time.monotonic()))

    def twin(self, stream: Stream) -> Stream:
        """Another stream that has heard what this one has, to look at its end while it goes on."""
        twin = self._take_in(self._lanes.twin(stream.session))
        self.set_aside(twin)
        return twin

    async def save(self, stream: Stream, *, turns_s: float | None = None) -> bytes:
        """See `Lanes.save`; waits until no scores are awaited for it."""
        while self._lanes.asked_C[stream.session.row]:
            await asyncio.sleep(0.001)
        return self._lanes.save(stream.session, turns_s=turns_s)

    def restore(self, saved: bytes) -> Stream:
        """See `Lanes.restore`."""
        return self._take_in(self._lanes.restore(saved, now_s=time.monotonic()))

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
            self._aside.discard(stream.session.row)
            self._lanes.leave(stream.session)

    def wake(self) -> None:
        """Tell that some session has audio to score."""
        self._work.set()

    def rest(self, passed_s: float) -> None:
        """So much time passed: where there was nothing to do, the load falls."""
        if not self._work.is_set():
            self.load -= min(1.0, passed_s / LOAD_OVER_S) * self.load
            self.late_s -= min(1.0, passed_s / LATE_OVER_S) * self.late_s

    async def settle(self, stream: Stream) -> None:
        """See `Stream.settle`."""
        self.wake()
        await stream.settle()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        clock = _Clock()
        while True:
            if not self._work.is_set():
                await self._work.wait()
                clock.waited()
            started_s = time.monotonic()
            if not await self._round(loop):
                self._work.clear()
                continue
            # A packet of 100 ms often brings two steps: the second one does not wait for the next tick.
            await self._round(loop)
            busy_s = time.monotonic() - started_s
            metrics.TICK_SECONDS.observe(busy_s)
            pause_s = self._pause_s(busy_s)
            await asyncio.sleep(pause_s)
            self.load = clock.load(self.load, busy_s, pause_s)

    async def _round(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Score one step of all that have one; whether there was any."""
        started_s = time.monotonic()
        batch = self._lanes.gather(max_batch=self.config.max_batch, now_s=started_s)
        if batch is None:
            return False
        try:
            activity, state = await self._score(batch)
            metrics.INFERENCE_LATENCY.observe(time.monotonic() - started_s)
            scored = self._lanes.scatter(activity, state)
            metrics.INFERENCE_REQUESTS.inc()
            metrics.BATCH_SIZE.observe(len(batch[0]))
        except Exception as err:  # a batch that fails ends its streams, never the engine
            logger.exception("a step of %d streams failed", len(batch[0]))
            metrics.INFERENCE_ERRORS.inc()
            scored = self._lanes.give_up()
            for lane in scored:
                self._streams[lane.row].failure = err
        self._tell([self._streams[lane.row] for lane in scored], loop.time())
        return True

    def _tell(self, streams: list[Stream], now_s: float) -> None:
        for stream in streams:
            stream.scored()
            if stream.failure is not None:
                self.leave(stream)
        observed = streams[:: max(1, len(streams) // OBSERVED)]
        late_s = [now_s - stream.heard_s for stream in observed if stream.heard_s is not None]
        for one_s in late_s:
            metrics.EMISSION.observe(one_s)
        if late_s:
            passed_s = min(LATE_OVER_S, now_s - self._told_s)
            self.late_s += passed_s / LATE_OVER_S * (sum(late_s) / len(late_s) - self.late_s)
            self._told_s = now_s
        for stream in streams:
            stream.heard_s = now_s if stream.session.waiting_s else None

    def _pause_s(self, busy_s: float) -> float:
        """How long packets may gather before the next step: the busier, the longer, for larger batches cost less.

        A backlog, or a look past an end, is worked off without waiting.
        """
        tick_s = self.config.tick_ms / 1000.0 * (1.0 + 2.0 * self.load)
        behind = bool(self._lanes.ending) or self._lanes.most_waiting_s > 0.5
        return 0.0 if behind else max(0.0, tick_s - busy_s)


class _Clock:
    """What share of the time is spent: by the CPU time that this process took, and by the wall where steps and what
    lies between them take longer than they should, because others have the CPU or because there is too much."""

    def __init__(self) -> None:
        self.waited()

    def waited(self) -> None:
        """There was nothing to do until now."""
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()
        self._busy_s = self._meant_s = 0.0

    def load(self, before: float, busy_s: float, pause_s: float) -> float:
        """The running mean, after a step of `busy_s` and a pause that was to take `pause_s`."""
        self._busy_s += busy_s
        self._meant_s += busy_s + pause_s
        wall_s = time.monotonic()
        passed_s = wall_s - self._wall_s
        if passed_s < READ_EVERY_S:
            return before
        late_s = max(0.0, passed_s - self._meant_s)
        spent = min(1.0, max(time.process_time() - self._cpu_s, self._busy_s + late_s) / passed_s)
        self.waited()
        return before + min(1.0, passed_s / LOAD_OVER_S) * (spent - before)


def measure_cost(model: StepModel) -> float:
    """Share of the time that one stream takes among many: a step of `TRIED` of them, and their packets."""
    lanes = Lanes(model.metadata, capacity=TRIED)
    streams = [lanes.open(StreamSettings()) for _ in range(TRIED)]
    packet = (np.random.default_rng(0).standard_normal(STEP_SAMPLES) * 1000).astype("<i2").tobytes()
    costs = []
    for _ in range(TRIALS):
        started_s = time.process_time()
        for stream in streams:
            stream.receive_audio(packet)
        batch = lanes.gather(max_batch=TRIED)
        assert batch is not None
        lanes.scatter(*model.step(*batch))
        costs.append((time.process_time() - started_s) / TRIED / STEP_S)
    return float(np.median(costs)) + PACKETS_COST
