"""What all protocols of a process share: the engine, who may come in, and streams that wait for their clients."""

import asyncio
import itertools
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from serving.api.access import TICKET_S, WINDOW_S, Access, Rates, Tickets
from serving.api.connection import Connection
from serving.api.conversation import Conversation, Listener, Tokens, new_id
from serving.api.store import Store
from serving.errors import DRAINED
from serving.tracing import Tracer
from serving.transformer import metrics
from serving.transformer.engine import Engine, Stream
from serving.transformer.fellows import Fellows
from voiceflow.errors import PlatformError, StreamError
from voiceflow.provenance import Provenance
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import samples_to_seconds

logger = logging.getLogger("voiceflow.streams")
SWEEP_S = 0.1
RETRY_AFTER_S = 5.0
DRAIN_S = 20.0
"""So long clients have to take their last answers when the server goes."""
Fetch = Callable[[str, str], Awaitable[bytes | None]]


async def nowhere(session_id: str, owner: str) -> bytes | None:
    """No other process has the stream."""
    return None


def token_key() -> bytes:
    """The key of resume tokens and tickets: `VOICEFLOW_TOKEN_KEY`, or one of this server's own."""
    given = os.environ.get("VOICEFLOW_TOKEN_KEY")
    return given.encode() if given else secrets.token_bytes(32)


@dataclass(eq=False)
class Service:
    """One process's streams.

    Args:
        engine: Holds the streams.
        variant: champion, challenger or shadow; told to clients.
        tokens: Makes and reads resume tokens.
        fetch: Asks other workers for a stream by its id, for the holder of a key.
    """

    engine: Engine
    variant: str = "champion"
    provenance: Provenance | None = None
    """Where the model comes from, where that is known."""
    tokens: Tokens = field(default_factory=lambda: Tokens(token_key()))
    fetch: Fetch = nowhere
    tracer: Tracer = field(default_factory=Tracer)
    access: Access = field(default_factory=Access)
    store: Store | None = None
    """Where streams are saved every `checkpoint_s`, for other servers to go on with."""
    fellows: Fellows | None = None
    """The other workers, where there are any."""
    count_elsewhere: Callable[[str], Awaitable[int]] | None = None
    """Counts requests in the worker that counts for all, where it is not this one."""
    redeem_elsewhere: Callable[[str], Awaitable[bool]] | None = None
    """Asks the worker that makes tickets, where it is not this one."""
    connections: set[Connection] = field(default_factory=set)
    conversations: dict[str, Conversation] = field(default_factory=dict)
    is_draining: bool = False
    _rates: Rates = field(default_factory=Rates)
    _tickets: Tickets = field(default_factory=Tickets)
    _alone: dict[str, float] = field(default_factory=dict)
    """Since when conversations have had no client, the longest first."""
    _saving: set[str] = field(default_factory=set)
    _claims: set[str] = field(default_factory=set)
    """Streams from the store whose first save here is still to come."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _num_samples: int = 0
    """Heard since the last sweep."""
    _cpu_s: float = 0.0
    _sweeper: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.config = self.engine.config
        self.model = {**self.engine.metadata.summary(), "variant": self.variant}
        metrics.set_model(self.engine.metadata.version, self.variant)

    def start(self) -> None:
        """Begin to look after connections; in a running loop."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    # streams

    @property
    def num_streams(self) -> int:
        """Streams of this process and its fellows."""
        here = self.engine.num_streams
        if self.fellows is None:
            return here
        self.fellows.tell(here, self.engine.capacity)
        return here + self.fellows.count_elsewhere()

    @property
    def capacity(self) -> int:
        """Streams that this process and its fellows can hold."""
        if self.fellows is None:
            return self.engine.capacity
        return min(self.config.max_streams, self.engine.capacity + self.fellows.capacity_elsewhere())

    @property
    def is_full(self) -> bool:
        """Whether a new stream would be refused: there are as many as can be held, or answers come late as it is."""
        is_late = 1000.0 * self.engine.late_s > self.config.max_late_ms
        is_taken = self.engine.num_streams >= self.engine.capacity or self.num_streams >= self.config.max_streams
        return is_late or is_taken

    def admit(self) -> None:
        """Let a stream in.

        Raises:
            StreamError: `draining`, or `too_many` where those that are here leave no time for another.
        """
        if self.is_draining:
            raise StreamError("draining", "this server is going; connect again", retry_after_s=1.0)
        if self.is_full:
            raise StreamError(
                "too_many",
                f"this server holds {self.num_streams} streams and cannot hold more; try again later",
                retry_after_s=RETRY_AFTER_S,
            )

    def open(self, settings: StreamSettings, *, keep_s: float | None = None) -> Stream:
        """A new stream.

        Raises:
            StreamError: See `admit`; or settings that are not served.
        """
        self.admit()
        return self.engine.open(settings, keep_s=keep_s)

    async def enter(self, owner: str) -> None:
        """Count a request of a key's holder.

        Raises:
            StreamError: `too_many` in the last minute.
        """
        limit = self.config.max_requests_per_minute
        if owner and await self.count(owner) > limit:
            raise StreamError(
                "too_many", f"expected at most {limit} new requests a minute of one key", retry_after_s=RETRY_AFTER_S
            )

    async def count(self, owner: str) -> int:
        """Requests of a key's holder in the last minute, on all servers that share a store."""
        if self.store is not None:
            try:
                return await self.store.count(owner, window_s=WINDOW_S)
            except PlatformError as err:
                logger.warning("requests are counted here alone: %s", err)
        if self.count_elsewhere is not None:
            return await self.count_elsewhere(owner)
        return self._rates.count(owner)

    # tickets: URLs for one connection each

    def make_ticket(self) -> tuple[str, str]:
        """The id and the signed form of a ticket that can be redeemed once."""
        id_ = new_id()
        self._tickets.issue(id_)
        return id_, self.tokens.make("live", id_)

    async def redeem(self, ticket_id: str) -> bool:
        """Use a ticket up; False if it was used, or is too old."""
        if self.store is not None:
            return await self.store.use_once(ticket_id, keep_s=TICKET_S)
        if self.redeem_elsewhere is not None:
            return await self.redeem_elsewhere(ticket_id)
        return self._tickets.use(ticket_id)

    def heard(self, stream: Stream, num_samples: int, now_s: float) -> None:
        """Audio of a stream came that is to be scored: samples at 16 kHz, and the loop's time."""
        self._num_samples += num_samples
        if stream.heard_s is None and stream.session.waiting_s:
            stream.heard_s = now_s
        self.engine.wake()

    # conversations

    async def take_back(self, token: str, owner: str) -> Conversation:
        """The conversation of a resume token, wherever it is; nobody listens to it any more.

        Raises:
            StreamError: `bad_token`, or `no_resume` where the stream is not kept.
        """
        session_id = self.tokens.read("resume", token)
        if self.is_draining:
            raise StreamError("draining", "this server is going; connect again", retry_after_s=1.0)
        found = self.conversations.get(session_id) or await self._fetch(session_id, owner)
        if found.owner != owner:
            raise StreamError("not_authorised", "the stream was opened with another key")
        if found.listener is not None:
            found.listener.gone(StreamError("taken_over", "another client resumed this stream"))
        found.resume()
        metrics.RESUMES.inc()
        return found

    async def _fetch(self, session_id: str, owner: str) -> Conversation:
        """The conversation from another worker or the store; it is here then, with nobody listening."""
        saved = await self.fetch(session_id, owner)
        is_stored = saved is None and self.store is not None
        if is_stored:
            saved = await self._stored(session_id)
        if saved is None:
            raise StreamError(
                "no_resume",
                f"the stream is not kept any more (its client was gone for more than {self.config.resume_s:g} s, "
                "or it was closed); open another",
            )
        found = self.conversations.get(session_id)  # somebody else may have fetched it meanwhile
        if found is None:
            found = Conversation.restore(saved, self.engine)
            if found.owner != owner:
                self.engine.leave(found.stream)
                raise StreamError("not_authorised", "the stream was opened with another key")
            self.conversations[session_id] = found
            if is_stored:
                self._claims.add(session_id)
            self.keep(found)
        return found

    async def _stored(self, session_id: str) -> bytes | None:
        assert self.store is not None
        try:
            return await self.store.get(session_id)
        except PlatformError as err:
            logger.warning("a stream cannot be resumed now: %s", err)
            raise StreamError(
                "unavailable", "streams cannot be resumed at the moment; try again", retry_after_s=1.0
            ) from err

    def join(self, conversation: Conversation, listener: Listener) -> None:
        """Somebody listens to a conversation."""
        is_back = conversation.id in self.conversations
        self.conversations[conversation.id] = conversation
        self._alone.pop(conversation.id, None)
        conversation.listener = listener
        self._note("resumed" if is_back else "opened", conversation)
        self.engine.set_aside(conversation.stream, is_aside=False)
        self._checkpoint(conversation)  # so that it can be resumed from its first moment on

    def keep(self, conversation: Conversation) -> None:
        """Keep a conversation that nobody listens to until its client comes back, or for `resume_s`.

        It costs nothing but memory: of more than `max_streams` of them, the one longest alone is forgotten.
        """
        self.conversations[conversation.id] = conversation
        conversation.listener = None
        self.engine.set_aside(conversation.stream)
        self._alone[conversation.id] = asyncio.get_running_loop().time()
        self._checkpoint(conversation)
        while len(self._alone) > self.config.max_streams:
            self.forget(self.conversations[next(iter(self._alone))])

    def forget(self, conversation: Conversation, *, drop: bool = True) -> None:
        """A conversation is over, or goes on elsewhere: then it is not to be dropped from the store."""
        if self.conversations.get(conversation.id) is conversation:
            self._note("ended" if drop else "moved", conversation)
            if conversation.span is not None:
                conversation.span.end()
            del self.conversations[conversation.id]
            self._alone.pop(conversation.id, None)
            self._claims.discard(conversation.id)
            metrics.FLIPS.inc(conversation.flips)
            self.engine.leave(conversation.stream)
            if self.store is not None and drop:
                self._do(self.store.drop(conversation.id))

    def _note(self, event: str, conversation: Conversation) -> None:
        """Log what became of a stream, and tell its span."""
        session = conversation.stream.session
        figures = {
            "audio_s": session.received_s,
            "latency_s": session.settings.latency_s,
            "speakers": session.num_speakers,
            "messages": conversation.seq,
            "flips": conversation.flips,
        }
        logger.info("stream %s", event, extra={"stream": conversation.id, "owner": conversation.owner, **figures})
        if conversation.span is None and event in ("opened", "resumed"):
            conversation.span = self.tracer.begin(
                "stream", {"stream": conversation.id, **{f"model.{name}": value for name, value in self.model.items()}}
            )
        if conversation.span is not None:
            conversation.span.add_event(event)
            conversation.span.set_attributes(figures)

    async def give_away(self, session_id: str, owner: str) -> bytes | None:
        """A conversation of this process for another one that has its client now; None if there is none of theirs."""
        found = self.conversations.get(session_id)
        if found is None or found.owner != owner:
            return None
        if found.listener is not None:
            found.listener.gone(StreamError("taken_over", "another client resumed this stream"))
        saved = await found.save(self.engine)
        self.forget(found, drop=False)
        return saved

    def _checkpoint(self, conversation: Conversation) -> None:
        """Begin to save a conversation to the store, where there is one."""
        if self.store is not None and conversation.id not in self._saving:
            self._saving.add(conversation.id)
            self._do(self._save(conversation))

    async def _save(self, conversation: Conversation) -> None:
        assert self.store is not None
        try:
            saved = await conversation.save(self.engine)
            is_ours = await self.store.put(conversation.id, saved, claim=conversation.id in self._claims)
            self._claims.discard(conversation.id)
            metrics.CHECKPOINTS.inc()
            if not is_ours:
                if conversation.listener is not None:
                    conversation.listener.gone(StreamError("taken_over", "another client resumed this stream"))
                self.forget(conversation, drop=False)
        finally:
            self._saving.discard(conversation.id)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside everything else; what fails is logged."""

        async def guarded() -> None:
            try:
                await work
            except PlatformError as err:
                logger.warning("%s", err)
            except Exception:
                logger.exception("work on the side failed")

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        sweeps = max(1, round(self.config.checkpoint_s / SWEEP_S))
        for turn in itertools.cycle(range(sweeps)):
            await asyncio.sleep(SWEEP_S)
            if self.store is not None:
                for conversation in tuple(self.conversations.values()):
                    if conversation.listener is not None and int(conversation.id[:8], 16) % sweeps == turn:
                        self._checkpoint(conversation)
            now_s = asyncio.get_running_loop().time()
            for connection in tuple(self.connections):
                connection.sweep(now_s)
            for session_id, alone_since_s in tuple(self._alone.items()):
                if now_s - alone_since_s <= self.config.resume_s:
                    break
                self.forget(self.conversations[session_id])
            metrics.AUDIO_SECONDS.inc(samples_to_seconds(self._num_samples))
            self._num_samples = 0
            if self.fellows is not None:
                self.fellows.tell(self.engine.num_streams, self.engine.capacity)
            self.engine.rest(SWEEP_S)
            metrics.tell_engine(self.engine.num_streams, self.engine.capacity, self.engine.load)
            self._cpu_s = metrics.tell_process(self._cpu_s)

    # the end

    async def drain(self) -> None:
        """Tell clients to go, say what is decided, let streams go on elsewhere where they can, and close.

        With a store a stream goes on exactly where it was; without one its turns so far are made final.
        """
        self.is_draining = True
        for connection in tuple(self.connections):
            self._do(connection.talk.go_away())
        deadline_s = asyncio.get_running_loop().time() + DRAIN_S
        while self.connections and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.close(DRAINED, "drained")
        while self._tasks and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.02)

    async def move_out(self, conversation: Conversation) -> None:
        """Say all that can be said of a conversation whose server goes, and save it for the next."""
        session = conversation.stream.session
        if self.store is None:
            session.finalize()
            await self.engine.settle(conversation.stream)
        else:
            while session.waiting_s and conversation.stream.failure is None:
                await asyncio.sleep(0.01)
            saved = await conversation.save(self.engine)
            await self.store.put(conversation.id, saved, claim=conversation.id in self._claims)
