"""People who call, talk for a while and hang up, so many at a time: live streams that come and go."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

PACKET_S = 0.1
SLOTS = 10
"""Packets of a tenth of a second are sent in so many turns; in fewer, servers score more of them at once."""
START = json.dumps({"type": "start", "audio": {"encoding": "pcm_s16le", "sample_rate": 16_000, "channels": 1}})
PATIENCE_S = 120.0
AGAIN_S = 1.0


class Call(WSListener):
    """One stream: what it was told, held against what it was told before.

    Args:
        pcm: All it will say, 16-bit samples at 16 kHz.
    """

    def __init__(self, pcm: bytes) -> None:
        self.pcm = pcm
        self.sent = 0
        self.models: list[dict[str, Any]] = []
        """The first, and those it changed to."""
        self.changes: list[dict[str, Any]] = []
        self.fault = ""
        """What should not have been."""
        self.is_closed = False
        self.was_told_all = False
        self.ended_s = 0.0
        self.begun_s = time.monotonic()
        self._transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Begin."""
        self._transport = transport
        transport.send(WSMsgType.TEXT, START.encode())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Check a message."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
            return
        if frame.msg_type != WSMsgType.TEXT:
            return
        message = json.loads(frame.get_payload_as_bytes())
        kind = message["type"]
        if kind == "started":
            self.models.append(message["model"])
        elif kind == "error":
            self.fault = f"{message['code']}: {message['message']}"
        elif kind == "model_changed":
            if message["from"] != self.models[-1]:
                self.fault = f"changed from {message['from']}, was told of {self.models[-1]}"
            self.models.append(message["to"])
            self.changes.append(message)
        elif kind == "closed":
            self.was_told_all = True
        if "variant" in message and message["variant"] != self.models[-1]["variant"]:
            self.fault = f"{kind} of {message['variant']} in a stream of {self.models[-1]['variant']}"

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The end."""
        self.is_closed = True
        if not self.was_told_all and not self.fault:
            self.fault = "closed before everything was told"

    def send_next(self) -> None:
        """Say the packet that is due, or that there is no more."""
        if self._transport is None or self.is_closed or not self.models or self.ended_s:
            return
        size = int(PACKET_S * 32_000)
        if self.sent >= len(self.pcm):
            self.ended_s = time.monotonic()
            self._transport.send(WSMsgType.TEXT, b'{"type":"close"}')
            return
        self._transport.send(WSMsgType.BINARY, self.pcm[self.sent : self.sent + size])
        self.sent += size

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for its end for too long."""
        return bool(self.ended_s) and not self.is_closed and time.monotonic() - self.ended_s > PATIENCE_S


@dataclass
class Callers:
    """So many calls at a time, each of another length.

    Args:
        url: ``ws://host:port``.
        recordings: What is said; mono float32 at 16 kHz.
        number: Calls at a time.
        length_s: Least and greatest length of a call.
        seed: Of lengths and recordings.
        slots: See `SLOTS`.
    """

    url: str
    recordings: list[np.ndarray]
    number: int
    length_s: tuple[float, float] = (15.0, 40.0)
    seed: int = 0
    slots: int = SLOTS
    done: list[Call] = field(default_factory=list)
    _calls: list[Call | None] = field(default_factory=list)
    _is_over: bool = False

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        clipped = [np.clip(samples_N, -1.0, 1.0) * 32767.0 for samples_N in self.recordings]
        self._pcm = [samples_N.astype("<i2").tobytes() for samples_N in clipped]
        self._calls = [None] * self.number

    async def run(self, *, ramp_s: float) -> None:
        """Call until `stop`; the first calls come spread over `ramp_s`."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        due_s = [begin_s + ramp_s * index / self.number for index in range(self.number)]
        connecting: set[asyncio.Task[None]] = set()
        tick = 0
        while not self._is_over or any(self._calls):
            await asyncio.sleep(max(0.0, begin_s + tick * PACKET_S / self.slots - loop.time()))
            for index in range(tick % self.slots, self.number, self.slots):
                call = self._calls[index]
                if call is None:
                    if not self._is_over and loop.time() >= due_s[index]:
                        call = self._calls[index] = self._next(is_first=due_s[index] <= begin_s + ramp_s)
                        task = loop.create_task(self._connect(call))
                        connecting.add(task)
                        task.add_done_callback(connecting.discard)
                    continue
                if call.is_stuck:
                    call.fault, call.is_closed = "no end came", True
                if call.is_closed:
                    self.done.append(call)
                    call.pcm = b""
                    self._calls[index] = None
                    due_s[index] = loop.time() + (AGAIN_S if call.fault else 0.0)
                    continue
                call.send_next()
            tick += 1

    def stop(self) -> None:
        """Call no more; those that talk come to their end."""
        self._is_over = True

    def _next(self, *, is_first: bool) -> Call:
        low, high = self.length_s
        seconds = float(self._rng.uniform(0.0 if is_first else low, high)) + 1.0
        pcm = self._pcm[int(self._rng.integers(len(self._pcm)))]
        return Call(pcm[: int(seconds * 16_000) * 2])

    async def _connect(self, call: Call) -> None:
        try:
            await ws_connect(lambda: call, f"{self.url}/v1/stream", websocket_handshake_timeout=PATIENCE_S)
        except Exception as err:
            call.fault, call.is_closed = f"no connection: {err}", True

    @property
    def num_begun(self) -> int:
        """Calls at a time that have begun by now, at most."""
        return sum(call is not None and bool(call.models) for call in self._calls)

    # what came of them

    def since(self, moment_s: float) -> dict[str, Any]:
        """What calls were told that began, or were under way, since a moment by `time.monotonic`."""
        calls = [call for call in [*self.done, *filter(None, self._calls)] if call.models]
        begun = [call for call in calls if call.begun_s >= moment_s]
        saw = [call for call in begun if any(model["variant"] == "challenger" for model in call.models)]
        faults = [call.fault for call in calls if call.fault and (call.ended_s or time.monotonic()) >= moment_s]
        never = [call.fault for call in self.done if not call.models and call.begun_s >= moment_s]
        # Told to come again: the cores are shared with callers, Prometheus, MLflow and controller.
        refused = [fault for fault in never if fault.startswith("too_many")]
        faults += [fault for fault in never if fault not in refused]
        return {
            "streams_begun": len(begun),
            "calls_told_to_come_again": len(refused),
            "streams_that_saw_the_challenger": len(saw),
            "streams_that_changed_models": sum(bool(call.changes) for call in begun),
            "faults": dict(Counter(faults).most_common(5)),
        }
