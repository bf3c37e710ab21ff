"""Models that a process holds side by side, and which of them answers which stream.

A stream is given to one when it opens and stays with it. Only where that one fails, or is withdrawn, the champion
goes on with it. What each is to new streams is read from a split, once a second, and changes without a restart.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.transformer.engine import ENOUGH_STREAMS, Engine, Stream
from serving.transformer.metrics import IS_UP, SPLIT, ModelMetrics
from serving.transformer.observer import FLUSH_S, Observer
from voiceflow.config import StreamingConfig
from voiceflow.errors import StreamError, VoiceflowError
from voiceflow.provenance import Provenance
from voiceflow.runtime import StepModel
from voiceflow.split import Served, Split, share_of
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import samples_to_seconds

logger = logging.getLogger("voiceflow.variants")
LOOK_S = 1.0
"""How often the split is read."""
LOAD_AGAIN_S = 8.0
"""So long after a model could not be loaded it is tried again."""
MAX_LATE_S, MAX_LATE_TIMES = 1.0, 4.0
"""A challenger is down whose answers are so late, and so many times as late as the champion's,"""
SLOW_FOR_S = 3.0
"""for so long."""
SHADOW_LOAD = 0.8
"""Share of `max_load` beyond which no more streams are shadowed: real ones come first."""


@dataclass(eq=False)
class Variant:
    """A model that is held.

    Args:
        served: What was asked for.
        engine: Holds its streams.
        role: champion, challenger, previous (no new streams) or withdrawn (its streams are taken from it).
        provenance: Where it comes from, where that is known.
    """

    served: Served
    engine: Engine
    role: str
    provenance: Provenance | None = None
    file: StepModel | None = None
    """The model, where it is in this process."""

    late_for_s: float = 0.0
    """So long its answers have been much too late."""
    is_slow: bool = False
    """Whether its answers were much too late once."""

    def __post_init__(self) -> None:
        if self.role in ("champion", "challenger"):  # a slow one that lost its role goes on beside the others
            self.engine.is_beside = self.role == "challenger"
        self.since_s = time.monotonic()
        """When it took its role."""
        self.engine.variant, self.engine.digest = self.role, self.served.digest

    @property
    def model(self) -> dict[str, Any]:
        """The `model` object of answers."""
        summary = {**self.engine.metadata.summary(), "variant": self.role}
        return {**summary, "registered_version": self.served.version} if self.served.version else summary

    @property
    def is_up(self) -> bool:
        """Whether it can be given streams."""
        return not (self.is_slow or self.engine.is_failing)

    def become(self, role: str) -> None:
        """Another role from now on."""
        if role != self.role:
            self.engine.metrics.end()
            self.role = role
            self.engine.metrics = ModelMetrics(self.engine.metadata.version, role)
            self.engine.failed_s.clear()
            self.is_slow, self.late_for_s = False, 0.0
            self.__post_init__()


Load = Callable[[Served, str], Variant]
"""Loads a model in a role; takes a second or two."""
Read = Callable[[], Split | None]


class Variants:
    """All models of a process.

    Args:
        champion: The one that answers what nobody else does.
        config: Limits.
        load: Loads others.
        read: The split; may raise VoiceflowError.
        observer: Keeps statistics of some of the champion's streams.
    """

    def __init__(
        self,
        champion: Variant,
        config: StreamingConfig,
        *,
        load: Load,
        read: Read | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.champion = champion
        self.challenger: Variant | None = None
        self.others: list[Variant] = []
        """No longer given streams, with some left."""
        self.on_changed: Callable[[], None] = lambda: None
        """Called when there is another champion."""
        self._config = config
        self._load = load
        self._read = read
        self._cost = champion.engine.cost
        self._split: Split | None = None
        self._seen: Split | None = None
        self.observer = observer
        self._credit = 0.0
        """Streams that the challenger may have by its share of those that opened, less those that it had."""
        self._failed: dict[str, tuple[float, str]] = {}
        """When models could not be loaded, and why, by key."""
        self._told = ""
        self._lock = asyncio.Lock()
        self._mind(champion)

    # which one

    @property
    def all(self) -> list[Variant]:
        """Those held."""
        return [self.champion, *([self.challenger] if self.challenger else []), *self.others]

    def choose(self, stream_id: str) -> Variant:
        """Who answers a new stream; the challenger never has more than its share of those opened in this process."""
        split, challenger = self._split, self.challenger
        if split is None or challenger is None or not challenger.is_up:
            return self.champion
        self._credit += split.weight
        if share_of(stream_id, "variant") >= split.weight or (split.weight < 1.0 and self._credit < 1.0):
            return self.champion
        self._credit -= 1.0
        return challenger

    def shadow_of(self, stream_id: str) -> Variant | None:
        """Who hears a new stream of the champion as well."""
        split, challenger = self._split, self.challenger
        if split is None or challenger is None or not challenger.is_up:
            return None
        is_wanted = share_of(stream_id, "shadow") < split.shadow
        return challenger if is_wanted and self.load < SHADOW_LOAD * self._config.max_load else None

    def of(self, stream: Stream) -> Variant:
        """Whose engine holds a stream."""
        return next((variant for variant in self.all if variant.engine is stream.engine), self.champion)

    def open(self, variant: Variant, settings: StreamSettings) -> Stream:
        """A new stream of a variant.

        Raises:
            StreamError: Settings that are not served; `unavailable`: it was withdrawn meanwhile.
        """
        if variant not in (self.champion, self.challenger):
            raise StreamError("unavailable", "the model was withdrawn a moment ago; start again", retry_after_s=1.0)
        stream = variant.engine.open(settings, keep_s=self._config.keep_s)
        if variant is not self.champion:
            stream.session.keep_recent(self._config.replay_s)
        elif self.observer is not None:
            variant.engine.observer = self.observer
            self.observer.maybe_watch(stream)
        variant.engine.metrics.opened.inc()
        return stream

    async def restore(self, saved: bytes, key: str) -> Stream:
        """A saved stream, with its model if that is here, else with the champion.

        Raises:
            StreamError: See `Lanes.restore`.
        """
        variant = await self.find(key)
        if variant is not None:
            try:
                return variant.engine.restore(saved)
            except StreamError as err:
                if err.code != "other_model":
                    raise
        self.champion.engine.metrics.changed.inc()
        return self.champion.engine.take_over_saved(saved)

    async def find(self, key: str) -> Variant | None:
        """The one with this key, loaded if the split names it; None where the stream has to go on with another."""
        if self._held(key) is None:
            await self.look()
        found = self._held(key)
        return None if found is None or found.role == "withdrawn" else found

    def take_over(self, stream: Stream) -> None:
        """Let the champion go on with a stream."""
        stream.engine.metrics.changed.inc()
        self.champion.engine.take_over(stream)

    # how much there is

    @property
    def num_streams(self) -> int:
        """Streams of this process."""
        return sum(variant.engine.num_streams for variant in self.all)

    @property
    def load(self) -> float:
        """Share of the time in which this process had work to do, or wanted to and was not let."""
        return max(variant.engine.load for variant in self.all)

    @property
    def capacity(self) -> int:
        """Streams that this process can hold, by what one was measured to take at first, and by what they take now."""
        num_streams, max_streams = self.num_streams, self._config.max_streams
        cost = max(self._cost, self.load / num_streams if num_streams >= ENOUGH_STREAMS else 0.0)
        return min(max_streams, int(self._config.max_load / cost)) if cost else max_streams

    @property
    def is_late(self) -> bool:
        """Whether the champion's answers come late because there are too many streams."""
        is_late = 1000.0 * self.champion.engine.late_s > self._config.max_late_ms
        return is_late and self.num_streams >= ENOUGH_STREAMS

    def rest(self, passed_s: float) -> None:
        """So much time passed."""
        for variant in self.all:
            variant.engine.rest(passed_s)
            metrics = variant.engine.metrics
            num_shadows = (
                sum(stream.is_shadow for stream in variant.engine.streams) if variant.role != "champion" else 0
            )
            metrics.streams.set(variant.engine.num_streams)
            metrics.audio_seconds.inc(samples_to_seconds(variant.engine.num_heard))
            variant.engine.num_heard = 0
            metrics.shadowed.set(num_shadows)
            IS_UP.labels(variant.role).set(variant.is_up)
        challenger = self.challenger
        if challenger is not None:
            late_s = challenger.engine.late_s
            is_late = late_s > MAX_LATE_S and late_s > MAX_LATE_TIMES * self.champion.engine.late_s
            challenger.late_for_s = challenger.late_for_s + passed_s if is_late else 0.0
            if challenger.late_for_s > SLOW_FOR_S and not challenger.is_slow:
                challenger.is_slow = True
                logger.error("the challenger's answers come %.1f s late; it gets no more streams", late_s)
            if not challenger.is_up:
                self._empty(challenger)
        for variant in tuple(self.others):
            if variant.role == "withdrawn":
                self._empty(variant)
            if not variant.engine.streams and not self._lock.locked():  # else it may be about to get a role
                self.others.remove(variant)
                variant.engine.metrics.end()
                variant.engine.stop()
                logger.info("model %s is left", variant.model)

    def describe(self) -> list[dict[str, Any]]:
        """What is held, and what could not be."""
        split = self._split
        rows = [
            {
                **variant.model,
                "key": variant.served.key,
                "streams": variant.engine.num_streams,
                "is_up": variant.is_up,
                **({"weight": split.weight, "shadow": split.shadow} if split and variant.role == "challenger" else {}),
            }
            for variant in self.all
        ]
        return rows + [{"key": key, "is_up": False, "error": why} for key, (_, why) in self._failed.items()]

    async def observe(self) -> None:
        """Write statistics of streams until cancelled."""
        while self.observer is not None:
            await asyncio.sleep(FLUSH_S)
            for variant in self.all:
                self.observer.note_long(variant.engine.streams)
            await self.observer.flush()

    # the split

    async def watch(self) -> None:
        """Read the split and act on it until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # servers go on with the models that they have
                logger.exception("a split could not be acted on")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Read the split now, and act on it."""
        if self._read is None:
            return
        async with self._lock:
            try:
                split = await asyncio.to_thread(self._read)
            except VoiceflowError as err:
                if str(err) != self._told:
                    self._told = str(err)
                    logger.warning("models stay as they are: %s", err)
                return
            self._told = ""
            now_s = asyncio.get_running_loop().time()
            is_stale = any(now_s - since_s > LOAD_AGAIN_S for since_s, _ in self._failed.values())
            if split is not None and (split != self._seen or is_stale):
                self._seen = split
                await self._act(split)

    async def _act(self, split: Split) -> None:
        self._failed.clear()
        if self._split is None or split.challenger != self._split.challenger:
            IS_UP.labels("challenger").set(1)  # what the one before was is not this one's
        wanted = {"champion": split.champion}
        if split.challenger is not None:
            wanted["challenger"] = split.challenger
        for role, served in wanted.items():
            if self._held(served.key) is None:
                await self._take_in(served, role)
        before = self.champion
        champion = self._held(split.champion.key) or before  # where it cannot be loaded, who answers now goes on
        challenger = None if split.challenger is None else self._held(split.challenger.key)
        held = self.all
        for variant in held:
            is_withdrawn = variant.served.key in split.withdrawn
            role = "withdrawn" if is_withdrawn else "previous"
            variant.become("champion" if variant is champion else "challenger" if variant is challenger else role)
        self.champion, self.challenger = champion, challenger if challenger is not champion else None
        self.others = [variant for variant in held if variant not in (self.champion, self.challenger)]
        for variant in self.all:
            for stream in variant.engine.streams:
                if stream.is_shadow and variant is not self.challenger:
                    _drop(stream)
        weight = split.weight if self.challenger is not None else 0.0
        if self._split is None or split.challenger != self._split.challenger:
            self._credit = 0.0
        self._split = split
        if champion is not before:
            self.on_changed()
        SPLIT.set(split.revision)
        logger.info(
            "models: %s",
            ", ".join(f"{variant.role} {variant.served.version or variant.served.key[:12]}" for variant in self.all),
            extra={"weight": weight, "shadow": split.shadow},
        )

    def _held(self, key: str) -> Variant | None:
        return next((variant for variant in self.all if variant.served.key == key), None)

    async def _take_in(self, served: Served, role: str) -> None:
        try:
            variant = await asyncio.to_thread(self._load, served, role)
        except Exception as err:
            if not isinstance(err, VoiceflowError):
                logger.exception("a model could not be loaded")
            logger.warning("%s %s cannot be loaded: %s", role, served.uri, err)
            self._failed[served.key] = (asyncio.get_running_loop().time(), str(err))
            IS_UP.labels(role).set(0)
            return
        self._mind(variant)
        self.others.append(variant)

    # what fails

    def _mind(self, variant: Variant) -> None:
        variant.engine.rescue = lambda stream, error: self._rescue(variant, stream)

    def _rescue(self, variant: Variant, stream: Stream) -> bool:
        """Whether somebody else goes on with a stream whose step failed."""
        if stream.is_shadow:
            _drop(stream)
            return True
        if variant is self.champion or stream.session.handover is not None:
            return False
        return self._take_over_if_it_can(stream)

    def _take_over_if_it_can(self, stream: Stream) -> bool:
        try:
            self.take_over(stream)
        except StreamError:
            logger.exception("the champion cannot go on with a stream")
            return False
        return True

    def _empty(self, variant: Variant) -> None:
        """Take the streams of a model from it, once enough of their audio is kept to be heard again."""
        replay_s = self._config.replay_s
        is_over_due = time.monotonic() - variant.since_s > 2.0 * replay_s
        for stream in variant.engine.streams:
            lane = stream.session
            if stream.is_shadow:
                _drop(stream)
            elif lane.recent is None:
                lane.keep_recent(replay_s)
            elif lane.handover is None and (is_over_due or lane.recent_s >= min(replay_s, lane.answered_s)):
                self._take_over_if_it_can(stream)


def _drop(stream: Stream) -> None:
    """A shadow is not needed any more; whoever compares it learns of it."""
    stream.failure = stream.failure or ConnectionAbortedError("the model is not compared any more")
    stream.leave()
    stream.scored()
