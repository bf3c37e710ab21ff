"""Holds the streams of one model in a process and scores them together, one batch a tick."""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from serving.transformer import census, metrics
from serving.transformer.metrics import ModelMetrics
from serving.transformer.observer import Observer
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
"""So many streams say what one takes, and whether answers are late because there are too many."""
NICE = 10
"""Of the thread that scores a challenger, as `nice` counts."""
SUDDEN_S = 0.5
"""More audio than this beyond the time that passed came faster than people speak."""
MANY_FAILURES, FAILURES_WITHIN_S = 3, 60.0
READ_EVERY_S = 0.05
LOAD_OVER_S, LATE_OVER_S = 1.0, 0.5
"""The load, and how late answers are, are running means over about so long."""


@dataclass(eq=False)
class Stream:
    """A lane in an engine; both become others where another model goes on with the stream."""

    session: Lane
    engine: "Engine"
    on_scored: Callable[[], None] | None = None
    """Called after each of its steps, and when the engine gives up on it."""
    failure: Exception | None = None
    """Why the engine gave up on it."""
    heard_s: float | None = None
    """When the audio of the step that waits came, by the loop's clock; of the first, if several wait."""
    last_heard_s: float = 0.0
    """When audio came last."""
    is_shadow: bool = False
    """Whether what it says is compared only."""
    _settled: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        census.note("stream", self)

    def heard(self, now_s: float) -> None:
        """Audio of it came."""
        self.last_heard_s = now_s
        if self.heard_s is None and self.session.waiting_s:
            self.heard_s = now_s
        self.engine.wake()

    def scored_until(self, now_s: float) -> None:
        """A step was scored: find out when the audio of the next one came, if it is here.

        What waits came as people speak, or all at once where somebody sends a file: that is not late.
        """
        waiting_s = self.session.waiting_s
        if not waiting_s:
            self.heard_s = None
        elif self.heard_s is None or waiting_s > now_s - self.heard_s + SUDDEN_S:
            self.heard_s = now_s
        else:
            self.heard_s = max(self.heard_s, self.last_heard_s - waiting_s + STEP_S)

    def wake(self) -> None:
        """Tell that it has audio to score."""
        self.engine.wake()

    def leave(self) -> None:
        """It is over, and nobody hears of it any more."""
        self.engine.leave(self)
        self.on_scored = None

    def set_aside(self, *, is_aside: bool = True) -> None:
        """Do not count it among those held: a look at the end of another, or one that waits for its client."""
        self.engine.set_aside(self, is_aside=is_aside)

    def scored(self) -> None:
        """Tell those who wait for it."""
        if self._settled is not None and (self.failure is not None or not self.session.has_work):
            if not self._settled.done():
                self._settled.set_result(None)
            self._settled = None
        if self.on_scored is not None:
            self.on_scored()

    async def settle(self) -> None:
        """Score everything there is to score.

        Raises:
            Exception: What made the engine give up on it.
        """
        self.wake()
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
        variant: What its metrics are labelled with.
    """

    def __init__(
        self, metadata: ModelMetadata, score: Score, config: StreamingConfig, *, variant: str = "champion"
    ) -> None:
        self.metadata = metadata
        self.config = config
        self.variant = variant
        """What its metrics are labelled with."""
        self.digest = ""
        """SHA-256 of the model's file, where it is known."""
        self.observer: Observer | None = None
        """Told of streams that are watched, before they leave."""
        self.metrics = ModelMetrics(metadata.version, variant)
        self.is_beside = False
        """Whether steps are done in a thread, where that is possible: a slow one makes its own streams wait only."""
        self.rescue: Callable[[Stream, Exception], bool] = lambda stream, error: False
        """Asked for each stream of a step that failed: True where something else goes on with it."""
        self.num_heard = 0
        """Samples of its streams that came since metrics were told."""
        self.failed_s: deque[float] = deque(maxlen=MANY_FAILURES)
        """When the last steps failed that did."""
        self.load = 0.0
        """Share of the time in which this process had work to do, or wanted to and was not let."""
        self.late_s = 0.0
        """How long answers come after the audio that they need, of late."""
        self.cost = 0.0
        """Share of the time that one stream takes among many, where that was measured before the first one came."""
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
    def local(cls, model: StepModel, config: StreamingConfig, *, variant: str = "champion") -> "Engine":
        """An engine that scores in this process: in the event loop, for a step is a millisecond or less a stream."""

        async def score(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
            if engine.is_beside:
                return await asyncio.get_running_loop().run_in_executor(_beside(), model.step, *batch)
            return model.step(*batch)

        engine = cls(model.metadata, score, config, variant=variant)
        return engine

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

    def take_over(self, stream: Stream) -> None:
        """Go on with a stream of another engine; see `Lanes.take_over`."""
        before, is_aside = stream.engine, stream.session.row in stream.engine._aside
        lane = self._lanes.take_over(stream.session.carried())
        before.leave(stream)
        stream.session, stream.engine = lane, self
        self._hold(stream)
        self.set_aside(stream, is_aside=is_aside)

    def twin(self, stream: Stream) -> Stream:
        """Another stream that has heard what this one has, to look at its end while it goes on."""
        twin = self._take_in(self._lanes.twin(stream.session))
        twin.set_aside()
        return twin

    def save(self, stream: Stream, *, turns_s: float | None = None, recent: bool = False) -> bytes:
        """See `Lanes.save`; for a stream that is not `is_between`."""
        return self._lanes.save(stream.session, turns_s=turns_s, recent=recent)

    def holds(self, stream: Stream) -> bool:
        """Whether it has not left."""
        return self._streams.get(stream.session.row) is stream

    def is_between(self, stream: Stream) -> bool:
        """Whether scores are awaited for it, or it hears again what another model heard."""
        return bool(self._lanes.asked_C[stream.session.row]) or stream.session.handover is not None

    def restore(self, saved: bytes) -> Stream:
        """See `Lanes.restore`."""
        return self._take_in(self._lanes.restore(saved, now_s=time.monotonic()))

    def take_over_saved(self, saved: bytes) -> Stream:
        """Go on with a stream that another model had when it was saved."""
        return self._take_in(self._lanes.take_over(self._lanes.carried(saved, now_s=time.monotonic())))

    def _take_in(self, lane: Lane) -> Stream:
        census.note("lane", lane)
        stream = Stream(lane, self)
        self._hold(stream)
        return stream

    def _hold(self, stream: Stream) -> None:
        self._streams[stream.session.row] = stream
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        self._work.set()

    @property
    def is_failing(self) -> bool:
        """Whether many steps failed within a short time, once; `failed_s` is to be cleared for another try."""
        return len(self.failed_s) == MANY_FAILURES and self.failed_s[-1] - self.failed_s[0] < FAILURES_WITHIN_S

    @property
    def streams(self) -> list[Stream]:
        """All that are open, those set aside as well."""
        return list(self._streams.values())

    def stop(self) -> None:
        """No stream will come any more."""
        assert not self._streams
        if self._task is not None:
            self._task.cancel()

    def leave(self, stream: Stream) -> None:
        """Forget a stream."""
        if self.holds(stream):
            if self.observer is not None and stream.session.is_watched:
                self.observer.note(stream)
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
            self.load = clock.load(self.load, busy_s, pause_s, is_beside=self.is_beside)

    async def _round(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Score one step of all that have one; whether there was any."""
        started_s = time.monotonic()
        batch = self._lanes.gather(max_batch=self.config.max_batch, now_s=started_s)
        if batch is None:
            return False
        try:
            activity, state = await self._score(batch)
            self.metrics.step_latency.observe(time.monotonic() - started_s)
            scored = self._lanes.scatter(activity, state)
            self.metrics.steps.inc()
            metrics.BATCH_SIZE.observe(len(batch[0]))
        except Exception as err:  # a batch that fails ends its streams, never the engine
            logger.exception("a step of %d streams failed", len(batch[0]))
            self.metrics.errors.inc()
            self.metrics.failed_steps.inc()
            self.failed_s.append(loop.time())
            given_up = [self._streams[lane.row] for lane in self._lanes.give_up()]
            self.metrics.lost.inc(sum(not stream.is_shadow for stream in given_up))
            for stream in given_up:
                if not self.rescue(stream, err):
                    # Without the way it came, which refers to all streams of the step.
                    stream.failure = err.with_traceback(None)
            self._tell([stream for stream in given_up if stream.failure is not None], loop.time())
            return True
        self._tell([self._streams[lane.row] for lane in scored], loop.time())
        return True

    def _tell(self, streams: list[Stream], now_s: float) -> None:
        for stream in streams:
            stream.scored()
            if stream.failure is not None:
                self.leave(stream)
        observed = streams[:: max(1, len(streams) // OBSERVED)]
        # Who is ahead of time gets what the others leave: that is not late.
        is_ahead_B = self._lanes.are_ahead(np.array([stream.session.row for stream in observed], np.int64), now_s)
        observed = [stream for stream, is_ahead in zip(observed, is_ahead_B, strict=True) if not is_ahead]
        late_s = [now_s - stream.heard_s for stream in observed if stream.heard_s is not None]
        for one_s in late_s:
            self.metrics.emission.observe(one_s)
        if late_s:
            passed_s = min(LATE_OVER_S, now_s - self._told_s)
            self.late_s += passed_s / LATE_OVER_S * (sum(late_s) / len(late_s) - self.late_s)
            self._told_s = now_s
        for stream in streams:
            stream.scored_until(now_s)

    def _pause_s(self, busy_s: float) -> float:
        """How long packets may gather before the next step: the busier, the longer, for larger batches cost less.

        A backlog, or a look past an end, is worked off without waiting.
        """
        tick_s = self.config.tick_ms / 1000.0 * (1.0 + 2.0 * self.load)
        behind = bool(self._lanes.ending) or self._lanes.most_waiting_s > 0.5
        return 0.0 if behind else max(0.0, tick_s - busy_s)


@cache
def _beside() -> ThreadPoolExecutor:
    """A thread that yields to all others: a slow challenger has what the champion leaves."""

    def give_way() -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)

    return ThreadPoolExecutor(1, "challenger", initializer=give_way)


class _Clock:
    """What share of the time is spent: by the CPU time that the event loop took, and by the wall where steps and what
    lies between them take longer than they should, because others have the CPU or because there is too much."""

    def __init__(self) -> None:
        self.waited()

    def waited(self) -> None:
        """There was nothing to do until now."""
        self._wall_s, self._cpu_s = time.monotonic(), time.thread_time()
        self._busy_s = self._meant_s = 0.0

    def load(self, before: float, busy_s: float, pause_s: float, *, is_beside: bool) -> float:
        """The running mean, after a step of `busy_s` and a pause that was to take `pause_s`.

        Of steps that are done beside the loop, waiting is no work.
        """
        self._busy_s += busy_s
        self._meant_s += busy_s + pause_s
        wall_s = time.monotonic()
        passed_s = wall_s - self._wall_s
        if passed_s < READ_EVERY_S:
            return before
        late_s = max(0.0, passed_s - self._meant_s)
        cpu_s = time.thread_time() - self._cpu_s
        spent = min(1.0, (cpu_s if is_beside else max(cpu_s, self._busy_s + late_s)) / passed_s)
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
