"""A stream of `/v1/stream` as it outlives its connections: what was said to the client, and how it comes back."""

import asyncio
import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgpack
import orjson

from serving.tracing import Span
from serving.transformer import census
from serving.transformer.engine import Stream
from serving.transformer.shadow import Shadow
from serving.transformer.variants import Variant, Variants
from voiceflow.audio import SAMPLE_BYTES, FloatArray
from voiceflow.errors import StreamError
from voiceflow.streaming.events import ModelChanged
from voiceflow.streaming.messages import event_message
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import samples_to_seconds

ID_BYTES, MARK_BYTES = 12, 16
TOKEN = re.compile(rf"[A-Za-z0-9_-]{{{-(-4 * (ID_BYTES + MARK_BYTES) // 3)}}}", re.ASCII)
"""What a token looks like: base64 for URLs without padding."""
RECENT_MESSAGES = 128
"""Segments and revisions that can be told again to a client that comes back."""
SAVED_TURNS_S = 600.0
"""How far back turns go along when a stream moves to another process."""
SHADOW_TURNS_S = 60.0
"""How far back turns of a shadow are remembered."""
MAX_WAITING_ACKS = 1000
"""Beyond it one acknowledgement covers several packets."""


class Listener(Protocol):
    """Who is told what a conversation has to say."""

    def say(self, message: bytes) -> None:
        """Send a message."""
        ...

    def all_said(self) -> None:
        """The stream is done: everything has been said."""
        ...

    def gone(self, error: Exception) -> None:
        """The conversation goes on elsewhere, or cannot go on."""
        ...


def new_id() -> str:
    """A session id that cannot be guessed."""
    return secrets.token_hex(ID_BYTES)


class Tokens:
    """Resume tokens and single-use tickets: an id that only holders of the key can have made.

    Args:
        key: Shared by all processes whose tokens are good here.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, purpose: str, id_: str) -> str:
        """A token for an id."""
        raw = bytes.fromhex(id_)
        return urlsafe_b64encode(raw + self._mark(purpose, raw)).decode().rstrip("=")

    def read(self, purpose: str, token: str) -> str:
        """The id of a token.

        Raises:
            StreamError: `bad_token`: not made here, or for something else.
        """
        if TOKEN.fullmatch(token):
            id_ = urlsafe_b64decode(token + "=" * (-len(token) % 4))[:ID_BYTES].hex()
            if hmac.compare_digest(self.make(purpose, id_), token):
                return id_
        raise StreamError("bad_token", f"expected a {purpose} token of this service; it is not one, or was changed")

    def _mark(self, purpose: str, raw: bytes) -> bytes:
        return hmac.digest(self._key, purpose.encode() + b"\0" + raw, hashlib.sha256)[:MARK_BYTES]


def owner_of(saved: bytes) -> str:
    """Whose key opened the conversation of a `Conversation.save`."""
    return str(msgpack.unpackb(saved)["owner"])


@dataclass(eq=False)
class Conversation:
    """A stream, the messages it gave rise to, and whoever listens."""

    id: str
    stream: Stream
    variants: Variants
    owner: str = ""
    """Whose key opened it; nobody else can resume it."""
    ack: bool = False
    seq: int = 0
    num_bytes: int = 0
    """Audio taken from the client; a client that comes back goes on behind the last whole sample of it."""
    packets: deque[int] = field(default_factory=deque)
    """Ends of packets, in samples at 16 kHz, that are to be acknowledged."""
    recent: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=RECENT_MESSAGES))
    """The last messages, by seq."""
    closed: bytes | None = None
    """The last message of all, once everything is decided."""
    is_closing: bool = False
    listener: Listener | None = None
    span: Span | None = None
    flips: int = 0
    """Turns whose speaker turned out to be another one."""
    model: dict[str, Any] = field(default_factory=dict)
    """The model that the client was told of."""
    shadow: Shadow | None = None

    def __post_init__(self) -> None:
        census.note("conversation", self)
        self.stream.on_scored = self.scored
        self.model = self.model or self.variants.of(self.stream).model

    @classmethod
    def open(
        cls, id_: str, variants: Variants, variant: Variant, settings: StreamSettings, *, owner: str, ack: bool
    ) -> "Conversation":
        """A new one with a variant, heard by the challenger too where its id says so.

        Raises:
            StreamError: Settings that are not served, or the variant was withdrawn.
        """
        found = cls(id_, variants.open(variant, settings), variants, owner=owner, ack=ack)
        shadow = variants.shadow_of(id_) if variant is variants.champion and not settings.enrolled else None
        if shadow is not None:
            with suppress(StreamError):  # what the champion serves the challenger may not: nothing to compare then
                found.shadow = Shadow(shadow.engine.open(settings, keep_s=SHADOW_TURNS_S))
        return found

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample as the client sends it."""
        return SAMPLE_BYTES[self.stream.session.settings.encoding]

    @property
    def audio_s(self) -> float:
        """Where the next sample that the client sends belongs, in seconds from the stream's start."""
        return round(self.num_bytes // self.sample_bytes / self.stream.session.settings.sample_rate_hz, 6)

    def receive_audio(self, data: bytes, now_s: float) -> None:
        """Take a packet that came at the loop's time.

        Raises:
            VoiceflowError: See `Session.receive_audio`; nothing of the packet is taken then.
        """
        self.stream.session.receive_audio(data)
        if self.shadow is not None:
            self.shadow.receive_audio(data, now_s)
        self.num_bytes += len(data)
        self._note_packet()

    def receive_samples(self, samples_N: FloatArray, now_s: float) -> None:
        """Take decoded audio."""
        self.stream.session.receive_samples(samples_N)
        if self.shadow is not None:
            self.shadow.receive_samples(samples_N, now_s)
        self.num_bytes += len(samples_N) * self.sample_bytes
        self._note_packet()

    def _note_packet(self) -> None:
        if self.ack:
            if len(self.packets) >= MAX_WAITING_ACKS:
                self.packets.pop()
            self.packets.append(self.stream.session.num_samples)

    def resume(self) -> None:
        """A client comes back: what it had sent of a sample's first bytes comes again."""
        self.stream.session.drop_partial()
        if self.shadow is not None:
            self.shadow.stream.session.drop_partial()
        self.num_bytes -= self.num_bytes % self.sample_bytes

    def close(self) -> None:
        """No more audio will come."""
        self.is_closing = True
        self.stream.session.close()

    def scored(self) -> None:
        """Say what there is to say; the engine calls it after each step."""
        if self.stream.failure is not None:
            if self.listener is not None:
                self.listener.gone(self.stream.failure)
            return
        session = self.stream.session
        for event in session.events_to_send():
            message = event_message(event, self._next_seq())
            if isinstance(event, ModelChanged):
                before, self.model = self.model, self.variants.of(self.stream).model
                message |= {"from": before, "to": self.model}
            elif message["type"] == "revision":
                self.flips += len(message["segments"])
                self.stream.engine.metrics.flips.inc(len(message["segments"]))
            self._tell(message)
        packets = self.packets
        if packets:
            num_answered = session.num_answered
            while packets and num_answered >= packets[0]:
                self._acknowledge(packets.popleft())
        if self.is_closing and self.closed is None and session.is_done:
            self.closed = orjson.dumps(
                {"type": "closed", "audio_s": session.received_s, "speakers": session.num_speakers}
            )
            if self.listener is not None:
                self.listener.all_said()

    def leave(self) -> None:
        """It is over, or goes on elsewhere: nobody hears of it any more."""
        self.drop_shadow()
        self.stream.leave()
        self.listener = None

    def compare(self) -> None:
        """Compare what the challenger says of it, where that hears it."""
        if self.shadow is not None:
            if self.shadow.is_over:
                self.drop_shadow()
            else:
                self.shadow.compare(self.stream)

    def drop_shadow(self) -> None:
        """Nobody else hears it from now on."""
        if self.shadow is not None:
            self.shadow.leave()
            self.shadow = None

    def tell_again(self, *, after_seq: int) -> None:
        """Say what was said after a message once more, to the listener there is now.

        Where that was too long ago for the messages to be kept, all turns that ended are told as they are now, as new
        messages: a client that is cut off among them comes back with the last one it has.
        """
        if self.recent and self.recent[0][0] > after_seq + 1:
            for segment in self.stream.session.ended:
                self._tell(event_message(segment, self._next_seq()))
        else:
            for seq, message in list(self.recent):
                if seq > after_seq and self.listener is not None:
                    self.listener.say(message)
        if self.closed is not None and self.listener is not None:
            self.listener.all_said()

    def _next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def _tell(self, message: dict[str, Any]) -> None:
        self._say(orjson.dumps({**message, "variant": self.model["variant"]}))

    def _say(self, message: bytes) -> None:
        self.recent.append((self.seq, message))
        if self.listener is not None:
            self.listener.say(message)

    def _acknowledge(self, end_sample: int) -> None:
        if self.listener is not None:
            lag_ms = 1000.0 * self.stream.session.waiting_s
            self.listener.say(b'{"type":"ack","audio_s":%.6f,"lag_ms":%.1f}' % (samples_to_seconds(end_sample), lag_ms))

    # to another process, or to a store

    async def save(self, *, recent: bool = False) -> bytes:
        """All there is to it as bytes; not signed, not encrypted.

        Args:
            recent: Whether audio that another model would hear again goes along.

        Raises:
            StreamError: `no_resume`: it ended meanwhile.
        """
        while self.stream.engine.holds(self.stream) and self.stream.engine.is_between(self.stream):
            await asyncio.sleep(0.001)
        if not self.stream.engine.holds(self.stream):
            raise StreamError("no_resume", "the stream ended meanwhile")
        lane = self.stream.engine.save(self.stream, turns_s=SAVED_TURNS_S, recent=recent)
        saved: bytes = msgpack.packb(
            {
                "id": self.id,
                "owner": self.owner,
                "ack": self.ack,
                "seq": self.seq,
                "num_bytes": self.num_bytes,
                "packets": list(self.packets),
                "recent": list(self.recent),
                "closed": self.closed,
                "is_closing": self.is_closing,
                "flips": self.flips,
                "model": self.model,
                "key": self.variants.of(self.stream).served.key,
                "lane": lane,
            }
        )
        return saved

    @classmethod
    async def restore(cls, saved: bytes, variants: Variants) -> "Conversation":
        """The conversation of a `save`, with nobody listening; where its model is not here, the champion goes on.

        Raises:
            StreamError: See `Lanes.restore`.
        """
        plain: dict[str, Any] = msgpack.unpackb(saved)
        stream = await variants.restore(plain.pop("lane"), plain.pop("key", ""))
        plain["packets"] = deque(plain["packets"])
        plain["recent"] = deque(((seq, message) for seq, message in plain["recent"]), maxlen=RECENT_MESSAGES)
        return cls(stream=stream, variants=variants, **plain)
