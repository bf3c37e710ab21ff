"""Conversations of a process: with their clients, waiting for them, saved, or on their way to another process."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from serving.api.conversation import Conversation, Listener, Tokens, owner_of
from serving.api.store import Store
from serving.tracing import Tracer
from serving.transformer import metrics
from serving.transformer.variants import Variants
from voiceflow.config import StreamingConfig
from voiceflow.errors import PlatformError, StreamError

logger = logging.getLogger("voiceflow.streams")
Fetch = Callable[[str, str], Awaitable[bytes | None]]


COMING_S = 2.0
"""So long another worker waits for a conversation on its way here: two that ask each other have none."""
MAX_TRIES = 20
"""To get hold of a conversation that others ask for as well."""
NOT_YOURS = b"not yours"
"""In place of a conversation that was opened with another key."""


def not_yours() -> StreamError:
    """Somebody else's stream."""
    return StreamError("not_authorised", "the stream was opened with another key")


async def nowhere(session_id: str, owner: str) -> bytes | None:
    """No other process has the stream."""
    return None


class Tasks:
    """What is done beside everything else; what fails is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin."""

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


@dataclass(eq=False)
class Keeper:
    """Keeps them.

    Args:
        variants: The models that hold their streams.
        config: Limits and times.
        tokens: Reads resume tokens.
        tracer: Begins a span for each.
        tasks: Saves beside everything else.
        store: Where streams are saved every `checkpoint_s`, for other servers to go on with.
        fetch: Asks other workers for a stream by its id, for the holder of a key.
    """

    variants: Variants
    config: StreamingConfig
    tokens: Tokens
    tracer: Tracer
    tasks: Tasks
    store: Store | None = None
    fetch: Fetch = nowhere
    kept: dict[str, Conversation] = field(default_factory=dict)
    """By id."""
    _alone: dict[str, float] = field(default_factory=dict)
    """Since when conversations have had no client, the longest first."""
    _saving: set[str] = field(default_factory=set)
    _coming: dict[tuple[str, str], asyncio.Task[Conversation]] = field(default_factory=dict)
    """Conversations that are being fetched, by id and the holder of the key who asked."""
    _leaving: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set once a conversation that is being given away is gone."""

    async def take_back(self, token: str, owner: str) -> Conversation:
        """The conversation of a resume token, wherever it is; nobody listens to it any more.

        Raises:
            StreamError: `bad_token`, or `no_resume` where the stream is not kept.
        """
        session_id = self.tokens.read("resume", token)
        found = await self._find(session_id, owner)
        if found.owner != owner:
            raise not_yours()
        if found.stream.failure is not None:
            self.forget(found)
            raise StreamError("no_resume", "the stream failed while its client was gone; open another")
        if found.listener is not None:
            found.listener.gone(StreamError("taken_over", "another client resumed this stream"))
        found.resume()
        metrics.RESUMES.inc()
        return found

    async def _find(self, session_id: str, owner: str) -> Conversation:
        for _ in range(MAX_TRIES):
            found = await self._here(session_id)
            if found is not None:
                return found
            # Whoever asked may be cut off before the stream is here; the next one to ask waits for the same.
            key = session_id, owner
            coming = self._coming.get(key)
            if coming is None:
                coming = self._coming[key] = asyncio.get_running_loop().create_task(self._fetch(session_id, owner))
                coming.add_done_callback(partial(self._came, key))
            found = await asyncio.shield(coming)
            if self.kept.get(session_id) is found and session_id not in self._leaving:
                return found
            # Another worker's client asked for it as soon as it was here.
        raise StreamError("unavailable", "others resume this stream all the time; try again", retry_after_s=1.0)

    async def _here(self, session_id: str) -> Conversation | None:
        """A conversation that is kept here, is the newest there is, and is not being given away."""
        while True:
            while session_id in self._leaving:
                await self._leaving[session_id].wait()
            found = self.kept.get(session_id)
            if found is None:
                return None
            is_elsewhere = await self._is_elsewhere(session_id)
            if session_id not in self._leaving and self.kept.get(session_id) is found:  # nothing happened meanwhile
                if is_elsewhere:
                    self._lose(found)
                return None if is_elsewhere else found

    def _came(self, key: tuple[str, str], task: asyncio.Task[Conversation]) -> None:
        del self._coming[key]
        if not task.cancelled():
            task.exception()  # nobody may be left to whom it matters

    async def _is_elsewhere(self, session_id: str) -> bool:
        """Whether another server has gone on with a stream that is kept here."""
        if self.store is None:
            return False
        try:
            return await self.store.is_elsewhere(session_id)
        except PlatformError as err:
            logger.warning("a stream is taken to be here alone: %s", err)
            return False

    def _lose(self, conversation: Conversation) -> None:
        """Another server has it."""
        if conversation.listener is not None:
            conversation.listener.gone(StreamError("taken_over", "another client resumed this stream"))
        self.forget(conversation, drop=False)

    async def _fetch(self, session_id: str, owner: str) -> Conversation:
        """The conversation from another worker or the store; it is here then, with nobody listening."""
        saved = await self.fetch(session_id, owner)
        if saved is None and self.store is not None:
            saved = await self._stored(session_id, owner)
        if saved == NOT_YOURS:
            raise not_yours()
        if saved is None:
            raise StreamError(
                "no_resume",
                f"the stream is not kept any more (its client was gone for more than {self.config.resume_s:g} s, "
                "or it was closed); open another",
            )
        return await self.take_in(session_id, saved)

    async def take_in(self, session_id: str, saved: bytes) -> Conversation:
        """Keep a conversation that was saved, with nobody listening; or the one that is here already.

        Raises:
            StreamError: See `Lanes.restore`.
        """
        found = self.kept.get(session_id)  # somebody else may have fetched it meanwhile
        if found is None:
            found = await Conversation.restore(saved, self.variants)
            already = self.kept.get(session_id)  # models were looked for meanwhile
            if already is not None:
                found.leave()
                return already
            self.keep(found)
        return found

    async def _stored(self, session_id: str, owner: str) -> bytes | None:
        assert self.store is not None
        try:
            saved = await self.store.get(session_id)
            if saved is None or owner_of(saved) == owner:
                return None if saved is None else await self.store.take(session_id)
            return NOT_YOURS  # whose it is goes on with it where it is
        except PlatformError as err:
            logger.warning("a stream cannot be resumed now: %s", err)
            raise StreamError(
                "unavailable", "streams cannot be resumed at the moment; try again", retry_after_s=1.0
            ) from err

    def join(self, conversation: Conversation, listener: Listener) -> None:
        """Somebody listens to a conversation."""
        is_back = conversation.id in self.kept
        self.kept[conversation.id] = conversation
        self._alone.pop(conversation.id, None)
        conversation.listener = listener
        self._note("resumed" if is_back else "opened", conversation)
        conversation.stream.set_aside(is_aside=False)
        self._checkpoint(conversation)  # so that it can be resumed from its first moment on

    def keep(self, conversation: Conversation) -> None:
        """Keep a conversation that nobody listens to until its client comes back, or for `resume_s`.

        It costs nothing but memory: of more than `max_streams` of them, the one longest alone is forgotten.
        """
        self.kept[conversation.id] = conversation
        conversation.listener = None
        conversation.stream.set_aside()
        self._alone[conversation.id] = asyncio.get_running_loop().time()
        self._checkpoint(conversation)
        while len(self._alone) > self.config.max_streams:
            self.forget(self.kept[next(iter(self._alone))])

    def forget(self, conversation: Conversation, *, drop: bool = True) -> None:
        """A conversation is over, or goes on elsewhere: then it is not to be dropped from the store."""
        if self.kept.get(conversation.id) is conversation:
            self._note("ended" if drop else "moved", conversation)
            if conversation.span is not None:
                conversation.span.end()
            del self.kept[conversation.id]
            self._alone.pop(conversation.id, None)
            conversation.leave()
            if self.store is not None and drop:
                self.tasks.do(self.store.drop(conversation.id))

    def _note(self, event: str, conversation: Conversation) -> None:
        """Log what became of a stream, and tell its span."""
        session = conversation.stream.session
        figures = {
            "audio_s": session.received_s,
            "latency_s": session.settings.latency_s,
            "speakers": session.num_speakers,
            "messages": conversation.seq,
            "flips": conversation.flips,
            "variant": conversation.model["variant"],
        }
        logger.info("stream %s", event, extra={"stream": conversation.id, "owner": conversation.owner, **figures})
        if conversation.span is None and event in ("opened", "resumed"):
            conversation.span = self.tracer.begin(
                "stream",
                {"stream": conversation.id, **{f"model.{name}": value for name, value in conversation.model.items()}},
            )
        if conversation.span is not None:
            conversation.span.add_event(event)
            conversation.span.set_attributes(figures)

    async def give_away(self, session_id: str, owner: str) -> bytes | None:
        """A conversation of this process for another one that has its client now; None if there is none.

        One that is on its way here is waited for. `take_in` takes back what did not arrive.
        """
        coming = [task for (id_, _), task in self._coming.items() if id_ == session_id]
        if coming:
            await asyncio.wait(coming, timeout=COMING_S)
        found = await self._here(session_id)
        if found is None:
            return None
        if found.owner != owner:
            return NOT_YOURS
        if found.listener is not None:
            found.listener.gone(StreamError("taken_over", "another client resumed this stream"))
        gone = self._leaving[session_id] = asyncio.Event()
        try:
            saved = await found.save(recent=True)
            self.forget(found, drop=False)
        except StreamError:  # it ended meanwhile
            return None
        finally:
            del self._leaving[session_id]
            gone.set()
        return saved

    def _checkpoint(self, conversation: Conversation) -> None:
        """Begin to save a conversation to the store, where there is one."""
        if self.store is not None and conversation.id not in self._saving:
            self._saving.add(conversation.id)
            self.tasks.do(self._save(conversation))

    async def _save(self, conversation: Conversation) -> None:
        assert self.store is not None
        try:
            try:
                saved = await conversation.save()
            except StreamError:  # it is over
                return
            is_ours = await self.store.put(conversation.id, saved)
            metrics.CHECKPOINTS.inc()
            if not is_ours:
                self._lose(conversation)
        finally:
            self._saving.discard(conversation.id)

    async def look_after(self, sweep_s: float) -> None:
        """Save those whose turn it is, forget those whose clients do not come back, compare what two models hear.

        Args:
            sweep_s: So often; each is saved every `checkpoint_s`.
        """
        sweeps = max(1, round(self.config.checkpoint_s / sweep_s))
        for turn in itertools.cycle(range(sweeps)):
            await asyncio.sleep(sweep_s)
            self._look_at(sweeps, turn)

    def _look_at(self, sweeps: int, turn: int) -> None:
        for conversation in tuple(self.kept.values()):
            if int(conversation.id[:8], 16) % sweeps == turn:
                conversation.compare()
                if conversation.listener is not None:
                    self._checkpoint(conversation)
                elif conversation.stream.failure is not None:
                    self.forget(conversation)
        now_s = asyncio.get_running_loop().time()
        for session_id, alone_since_s in tuple(self._alone.items()):
            if now_s - alone_since_s <= self.config.resume_s:
                break
            self.forget(self.kept[session_id])

    async def move_out(self, conversation: Conversation) -> None:
        """Say all that can be said of a conversation whose server goes, and save it for the next."""
        if self.store is None:
            conversation.stream.session.finalize()
            await conversation.stream.settle()
        else:
            while conversation.stream.session.waiting_s and conversation.stream.failure is None:
                await asyncio.sleep(0.01)
            saved = await conversation.save()
            await self.store.put(conversation.id, saved)
