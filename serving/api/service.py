"""What all protocols of a process share: its models, who may come in, and the conversations that are kept."""

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from serving.api.access import TICKET_S, WINDOW_S, Access, Rates, Tickets
from serving.api.connection import Connection
from serving.api.conversation import Conversation, Tokens, new_id
from serving.api.keeper import Keeper, Tasks
from serving.api.store import Store
from serving.errors import DRAINED
from serving.tracing import Tracer
from serving.transformer import census, metrics
from serving.transformer.engine import Stream
from serving.transformer.fellows import Fellows
from serving.transformer.variants import Variant, Variants
from voiceflow.config import StreamingConfig
from voiceflow.errors import PlatformError, StreamError
from voiceflow.streaming.session import StreamSettings

logger = logging.getLogger("voiceflow.streams")
SWEEP_S = 0.1
COUNT_SWEEPS = 10
"""Objects are counted once a second."""
RETRY_AFTER_S = 5.0
DRAIN_S = 20.0
"""So long clients have to take their last answers when the server goes."""


def token_key() -> bytes:
    """The key of resume tokens and tickets: `VOICEFLOW_TOKEN_KEY`, or one of this server's own."""
    given = os.environ.get("VOICEFLOW_TOKEN_KEY")
    return given.encode() if given else secrets.token_bytes(32)


@dataclass(eq=False)
class Service:
    """One process's streams.

    Args:
        variants: The models that hold the streams.
        tokens: Makes and reads resume tokens.
    """

    variants: Variants
    tokens: Tokens = field(default_factory=lambda: Tokens(token_key()))
    tracer: Tracer = field(default_factory=Tracer)
    access: Access = field(default_factory=Access)
    store: Store | None = None
    """Where streams are saved for other servers to go on with."""
    fellows: Fellows | None = None
    """The other workers, where there are any."""
    count_elsewhere: Callable[[str], Awaitable[int]] | None = None
    """Counts requests in the worker that counts for all, where it is not this one."""
    redeem_elsewhere: Callable[[str], Awaitable[bool]] | None = None
    """Asks the worker that makes tickets, where it is not this one."""
    connections: set[Connection] = field(default_factory=set)
    is_draining: bool = False
    tasks: Tasks = field(default_factory=Tasks)
    _rates: Rates = field(default_factory=Rates)
    _tickets: Tickets = field(default_factory=Tickets)
    _cpu_s: float = 0.0
    _num_sweeps: int = 0
    _sweepers: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.variants, self.config, self.tokens, self.tracer, self.tasks, self.store)

    @property
    def config(self) -> StreamingConfig:
        """Limits and times."""
        return self.variants.champion.engine.config

    @property
    def model(self) -> dict[str, Any]:
        """The champion, as answers name it."""
        return self.variants.champion.model

    def start(self) -> None:
        """Begin to look after connections, conversations and models; in a running loop."""
        loop = asyncio.get_running_loop()
        work = (self._sweep(), self.keeper.look_after(SWEEP_S), self.variants.watch(), self.variants.observe())
        self._sweepers = [loop.create_task(one) for one in work]

    # streams

    @property
    def num_streams(self) -> int:
        """Streams of this process and its fellows."""
        here = self.variants.num_streams
        if self.fellows is None:
            return here
        self.fellows.tell(here, self.variants.capacity)
        return here + self.fellows.count_elsewhere()

    @property
    def capacity(self) -> int:
        """Streams that this process and its fellows can hold."""
        if self.fellows is None:
            return self.variants.capacity
        return min(self.config.max_streams, self.variants.capacity + self.fellows.capacity_elsewhere())

    @property
    def is_full(self) -> bool:
        """Whether a new stream would be refused: there are as many as can be held, or answers come late as it is."""
        variants = self.variants
        is_taken = variants.num_streams >= variants.capacity or self.num_streams >= self.config.max_streams
        return variants.is_late or is_taken

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

    def open(self, settings: StreamSettings) -> Stream:
        """A new stream of the champion, for protocols that have no word for another model.

        Raises:
            StreamError: See `admit`; or settings that are not served.
        """
        self.admit()
        return self.variants.open(self.variants.champion, settings)

    def converse(self, id_: str, variant: Variant, settings: StreamSettings, *, owner: str, ack: bool) -> Conversation:
        """A new conversation with the variant that was chosen for its id.

        Raises:
            StreamError: See `admit`; settings that are not served; or the model was withdrawn meanwhile.
        """
        self.admit()
        return Conversation.open(id_, self.variants, variant, settings, owner=owner, ack=ack)

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
        stream.engine.num_heard += num_samples
        stream.heard(now_s)

    # conversations

    async def take_back(self, token: str, owner: str) -> Conversation:
        """The conversation of a resume token, wherever it is; nobody listens to it any more.

        Raises:
            StreamError: `draining`; or see `Keeper.take_back`.
        """
        if self.is_draining:
            raise StreamError("draining", "this server is going; connect again", retry_after_s=1.0)
        return await self.keeper.take_back(token, owner)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self._look_after()
            except Exception:  # streams do not depend on it; it comes again in a tenth of a second
                logger.exception("a sweep failed")

    def _look_after(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for connection in tuple(self.connections):
            connection.sweep(now_s)
        variants = self.variants
        variants.rest(SWEEP_S)
        if self.fellows is not None:
            self.fellows.tell(variants.num_streams, variants.capacity)
        metrics.tell_capacity(variants.num_streams, variants.capacity, variants.load)
        self._cpu_s = metrics.tell_process(self._cpu_s)
        self._num_sweeps += 1
        if self._num_sweeps % COUNT_SWEEPS == 0:
            metrics.tell_objects(census.count())

    # the end

    async def drain(self) -> None:
        """Tell clients to go, say what is decided, let streams go on elsewhere where they can, and close.

        With a store a stream goes on exactly where it was; without one its turns so far are made final.
        """
        self.is_draining = True
        for connection in tuple(self.connections):
            self.tasks.do(connection.talk.go_away())
        deadline_s = asyncio.get_running_loop().time() + DRAIN_S
        while self.connections and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.close(DRAINED, "drained")
        while self.tasks and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.02)
        if self.variants.observer is not None:
            await self.variants.observer.flush()
