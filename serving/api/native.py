"""`/v1/stream`: the native protocol, from start to closed, over one connection or several."""

import asyncio
from dataclasses import replace

from serving.api.connection import Pause, Talk
from serving.api.conversation import Conversation, new_id
from serving.api.opus import OpusDecoder
from serving.api.pace import Pace
from serving.api.service import Service
from serving.errors import DONE, DRAINED
from serving.transformer.engine import Engine
from voiceflow.audio import FloatArray
from voiceflow.errors import StreamError, VoiceflowError
from voiceflow.streaming.messages import (
    COMPRESSED,
    Close,
    EnrolledSpeaker,
    Finalize,
    KeepAlive,
    Start,
    Update,
    parse,
    settings_of,
)
from voiceflow.streaming.session import StreamSettings, Voice
from voiceflow.timebase import SAMPLE_RATE_HZ

HEARTBEAT = b'{"type":"heartbeat"}'
MAX_BEHIND = 1000
"""Messages that clients may have got since a stream was last saved to the store."""
CAN_COME_BACK = ("idle", "slow_reader")
"""Errors after which a stream waits for its client as if the connection had been cut."""


class NativeTalk(Talk):
    """One connection that speaks it.

    Args:
        service: The process's streams.
        shown: The key or JWT that came with the request.
    """

    def __init__(self, service: Service, shown: str | None) -> None:
        self.service = service
        self.config = service.config
        self.owner = ""
        self._shown = shown
        self.conversation: Conversation | None = None
        self.pace = Pace(service.config)
        self.decoder: OpusDecoder | None = None
        """Of compressed audio, which cannot be resumed: its decoder's state stays here."""
        self.max_samples = service.config.max_duration_s * SAMPLE_RATE_HZ

    def begin(self) -> None:
        """See `Talk.begin`: who may not come in learns it at once."""
        self.owner = self.service.access.check(self._shown)

    # what the client says

    def on_text(self, text: str) -> None:
        """A message."""
        message = parse(text)
        conversation = self.conversation
        if isinstance(message, Start):
            if conversation is not None:
                raise StreamError("started_already", "expected one start a stream; open another connection")
            self.connection.run(self._start(message))
            return
        if conversation is None:
            raise StreamError("no_start", f"expected start first, got {message.type}")
        if isinstance(message, KeepAlive) or conversation.is_closing:
            return
        if isinstance(message, Update):
            message.check()
        elif isinstance(message, Finalize):
            conversation.stream.session.finalize()
            conversation.stream.wake()
        elif isinstance(message, Close):
            if self.decoder is not None:
                self.decoder.end()
            else:
                self._close(conversation)

    def _close(self, conversation: Conversation) -> None:
        conversation.close()
        conversation.stream.wake()
        conversation.scored()  # there may be nothing left to score

    def on_audio(self, data: bytes) -> None:
        """A packet."""
        conversation = self.conversation
        if conversation is None:
            raise StreamError("audio_before_start", 'expected {"type": "start", ...} before audio')
        if len(data) > self.config.max_packet_bytes:
            raise StreamError(
                "too_large", f"expected packets of at most {self.config.max_packet_bytes} bytes, got {len(data)}"
            )
        if self.decoder is not None:
            self.decoder.feed(data)
            if self.decoder.is_behind:
                self.connection.pause_reading()
            return
        before = conversation.stream.session.num_samples
        conversation.receive_audio(data, self.connection.last_heard_s)
        self._received(conversation, before)

    def _decoded(self, samples_N: FloatArray) -> None:
        conversation = self.conversation
        if conversation is None or conversation.is_closing:
            return
        before = conversation.stream.session.num_samples
        try:
            conversation.receive_samples(samples_N, self.connection.last_heard_s)
            self._received(conversation, before)
        except StreamError as err:
            self.connection.fail(err)

    def _decoding_ended(self, failure: Exception | None) -> None:
        if failure is not None:
            self.connection.fail(failure)
        elif self.conversation is not None:
            self._close(self.conversation)

    def _received(self, conversation: Conversation, before: int) -> None:
        session = conversation.stream.session
        if session.num_samples > self.max_samples:
            raise StreamError(
                "too_long", f"expected at most {self.config.max_duration_s:g} s of audio in one stream; open another"
            )
        self.service.heard(conversation.stream, session.num_samples - before, self.connection.last_heard_s)
        self.pace.received(session.num_samples - before)
        if not self._may_read(self.connection.last_heard_s):
            self.connection.pause_reading()

    def _may_read(self, now_s: float) -> bool:
        conversation = self.conversation
        assert conversation is not None
        waiting_s = conversation.stream.session.waiting_s
        is_behind = self.decoder is not None and self.decoder.is_behind
        return not is_behind and waiting_s <= self.config.max_queued_audio_s and self.pace.may_receive(now_s)

    # start

    async def _start(self, start: Start) -> None:
        await self.service.enter(self.owner)
        if start.resume_token is not None:
            conversation = await self.service.take_back(start.resume_token, self.owner)
            after_seq = start.last_seq
            if after_seq > conversation.seq + (0 if self.service.store is None else MAX_BEHIND):
                self.service.keeper.keep(conversation)
                raise StreamError(
                    "bad_message",
                    f"start: expected last_seq of at most {conversation.seq}, the last that was sent, got {after_seq}",
                )
            refused: list[dict[str, str]] = []
        else:
            conversation, refused = await self._open(start)
            after_seq = 0
        if not self.connection.is_open:  # it left while its speakers were heard
            self.service.keeper.keep(conversation)
            return
        self.conversation = conversation
        self.service.keeper.join(conversation, self)
        if start.audio.encoding in COMPRESSED and start.resume_token is None:
            self.decoder = OpusDecoder(start.audio.encoding, self._decoded, self._decoding_ended)
        settings = conversation.stream.session.settings
        self.connection.send_json(
            {
                "type": "started",
                "session_id": conversation.id,
                "resume_token": self._token(conversation),
                "audio_s": conversation.audio_s,
                "model": conversation.model,
                "speakers_rejected": refused,
                "limits": {
                    "max_packet_bytes": self.config.max_packet_bytes,
                    "max_speed": self.config.max_speed or None,
                    "max_duration_s": self.config.max_duration_s,
                    "idle_s": self.config.idle_s,
                    "resume_s": self.config.resume_s,
                    "max_speakers": settings.max_speakers or conversation.stream.session.metadata.num_slots,
                    "voices_beyond": "each is given to the speaker it is most like",
                },
            }
        )
        self.connection.count_for(conversation.stream.engine.metrics)
        conversation.tell_again(after_seq=after_seq)
        conversation.stream.wake()

    def _token(self, conversation: Conversation) -> str | None:
        return None if self.decoder is not None else self.service.tokens.make("resume", conversation.id)

    async def _open(self, start: Start) -> tuple[Conversation, list[dict[str, str]]]:
        self.service.admit()
        settings = settings_of(start, default_latency_s=self.config.latency_s)
        id_ = new_id()
        variant = self.service.variants.choose(id_)
        voices, refused = await self._enrol(start.diarization.speakers, variant.engine)
        settings = replace(settings, enrolled=tuple(voices))
        return self.service.converse(id_, variant, settings, owner=self.owner, ack=start.ack), refused

    async def _enrol(self, speakers: list[EnrolledSpeaker], engine: Engine) -> tuple[list[Voice], list[dict[str, str]]]:
        """Voices of the speakers a client names, as a model knows them, and whom it named in vain, and why."""
        voices: list[Voice] = []
        refused: list[dict[str, str]] = []
        for speaker in speakers:
            try:
                if any(voice.label == speaker.label for voice in voices):
                    raise StreamError("bad_enrolment", f"{speaker.label}: named twice; expected one recording a label")
                samples_N = await asyncio.to_thread(speaker.audio)
                stream = engine.open(StreamSettings("pcm_f32le", latency_s=1.04, max_speakers=1))
                stream.set_aside()
                try:
                    stream.session.receive_samples(samples_N)
                    stream.session.close()
                    await stream.settle()
                    voices.append(stream.session.voice(speaker.label))
                finally:
                    stream.leave()
            except VoiceflowError as err:
                refused.append({"label": speaker.label, "reason": str(err)})
        return voices, refused

    # what the client is told

    def say(self, message: bytes) -> None:
        """See `conversation.Listener`."""
        self.connection.send(message)

    def all_said(self) -> None:
        """See `conversation.Listener`."""
        conversation = self.conversation
        assert conversation is not None
        assert conversation.closed is not None
        self.connection.send(conversation.closed)
        self.connection.close(DONE)

    def gone(self, error: Exception) -> None:
        """See `conversation.Listener`."""
        conversation, self.conversation = self.conversation, None
        if conversation is not None:
            conversation.listener = None
            if conversation.stream.failure is not None:
                self.service.keeper.forget(conversation)
        self.connection.fail(error)

    async def go_away(self) -> None:
        """See `Talk.go_away`: the client learns how it goes on elsewhere before the connection closes."""
        conversation = self.conversation
        self.connection.pause_reading(Pause.END)
        if conversation is None:
            # It has not begun here: a client that wanted to resume goes elsewhere with the token that it has.
            self.connection.close(DRAINED, "drained")
            return
        self.connection.send_json(
            {
                "type": "go_away",
                "reason": "the server is going",
                "resume_token": None if self.service.store is None else self._token(conversation),
                "audio_s": conversation.audio_s,
            }
        )
        try:
            if not conversation.is_closing:
                await self.service.keeper.move_out(conversation)
        finally:
            if not conversation.is_closing:
                self.connection.close(DRAINED, "drained")

    def sweep(self, now_s: float) -> None:
        """See `Talk.sweep`."""
        connection = self.connection
        if self.conversation is not None and self.conversation.is_closing:
            self.conversation.scored()  # also where nothing was left to score
        if connection.is_paused:
            if self.conversation is not None and self._may_read(now_s):
                connection.resume_reading()
        elif now_s - connection.last_heard_s > self.config.idle_s:
            raise StreamError("idle", f"expected audio or keepalive within {self.config.idle_s:g} s")
        if now_s - connection.last_sent_s > self.config.heartbeat_s:
            connection.send(HEARTBEAT)

    def lost(self) -> None:
        """See `Talk.lost`: the stream waits for its client, unless it was told everything."""
        conversation, self.conversation = self.conversation, None
        if conversation is None:
            return
        told_all = conversation.closed is not None and self.connection.was_closed_by_client
        failure_code = self.connection.failure_code
        is_at_fault = failure_code not in ("", *CAN_COME_BACK)
        if self.decoder is not None:
            self.decoder.drop()
        cannot_resume, self.decoder = self.decoder is not None, None
        if told_all or is_at_fault or cannot_resume or conversation.stream.failure is not None:
            self.service.keeper.forget(conversation)
        else:
            self.service.keeper.keep(conversation)
