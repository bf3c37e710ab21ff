"""Processes that share a port and act as one: streams, sockets and counts go from one to another."""

import array
import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

logger = logging.getLogger("voiceflow.workers")
ASK_S = 5.0
"""So long another worker has to answer."""
HTTP_WORKER = 0
"""The worker with KServe's server: plain HTTP and tickets are its."""
UNEVEN = 8
"""Streams by which workers may differ before a new one goes to the other."""
PASS_S, PASS_AGAIN_S = 2.0, 0.005
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: text/plain\r\n"
    b"content-length: 28\r\nconnection: close\r\n\r\nexpected soon; ask once more"
)
Answer = Callable[..., Awaitable[Any]]
ARRIVED = b"."
"""Says that an answer has arrived."""


class Fellows:
    """One worker's view of the others.

    Args:
        folder: Where their sockets are; made by the supervisor.
        index: Which of them this is.
        count: How many there are.
    """

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self._folder = folder
        self._index = index
        self._others = [other for other in range(count) if other != index]
        self._told = np.memmap(folder / "counts", np.int64, "r+", shape=(count, 2))
        """Streams that each worker holds, and can hold."""
        self._told[index] = 0
        self._passing = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._passing.setblocking(False)
        self._answers: dict[str, Answer] = {}
        self._undo: dict[str, Answer] = {}
        self._server: asyncio.Server | None = None

    async def start(self, answers: dict[str, Answer], *, undo: dict[str, Answer] | None = None) -> None:
        """Answer the others.

        Args:
            answers: Functions by the name they ask for.
            undo: What is called, with an answer and its arguments, where the answer did not arrive.
        """
        self._answers, self._undo = answers, undo or {}
        path = self._path(self._index)
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path)

    # counts

    def tell(self, num_streams: int, capacity: int) -> None:
        """How many streams this worker holds, and can hold."""
        self._told[self._index] = num_streams, capacity

    def count_elsewhere(self) -> int:
        """Streams that the others hold."""
        return int(self._told[self._others, 0].sum())

    def capacity_elsewhere(self) -> int:
        """Streams that the others can hold."""
        return int(self._told[self._others, 1].sum())

    def lighter(self, num_streams: int, *, is_full: bool) -> int | None:
        """The worker that holds fewest streams, if it has room and holds clearly fewer, or this one is full."""
        count, other = min((int(self._told[other, 0]), other) for other in self._others)
        has_room = count < int(self._told[other, 1])
        return other if has_room and (is_full or count + UNEVEN < num_streams) else None

    # questions

    async def ask_all(self, name: str, *arguments: Any) -> Any:
        """Ask the others at once; the first answer that is not None."""
        replies = await asyncio.gather(*(self.ask(other, name, *arguments) for other in self._others))
        return next((reply for reply in replies if reply is not None), None)

    async def ask(self, other: int, name: str, *arguments: Any) -> Any:
        """Ask one of the others; None if it is not there."""
        try:
            async with asyncio.timeout(ASK_S):
                reader, writer = await asyncio.open_unix_connection(self._path(other))
                try:
                    await _write(writer, [name, *arguments])
                    reply = await _read(reader)
                    writer.write(ARRIVED)
                    return reply
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            name, *arguments = await _read(reader)
            reply = await self._answers[name](*arguments)
            try:
                await _write(writer, reply)
                async with asyncio.timeout(ASK_S):
                    await reader.readexactly(len(ARRIVED))
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                if name in self._undo:
                    await self._undo[name](reply, *arguments)
        except Exception:
            logger.exception("a question of another worker was not answered")
        finally:
            writer.close()

    # sockets

    def pass_on(self, sock: socket.socket, to: int = HTTP_WORKER) -> None:
        """Give a connection to another worker: with plain HTTP to the one that serves it."""
        self._pass_on(sock, to, time.monotonic() + PASS_S)

    def _pass_on(self, sock: socket.socket, to: int, until_s: float) -> None:
        descriptors = array.array("i", [sock.fileno()])
        try:
            # socket.send_fds of Python 3.11 forgets the address.
            self._passing.sendmsg(
                [b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)], 0, str(self._folder / f"inbox-{to}")
            )
        except OSError as err:  # its inbox is full, or it is being started
            if isinstance(err, BlockingIOError) and time.monotonic() < until_s:
                asyncio.get_running_loop().call_later(PASS_AGAIN_S, self._pass_on, sock, to, until_s)
                return
            with contextlib.suppress(OSError):
                sock.send(UNAVAILABLE)
        sock.close()

    def take_over(self, serve: Callable[[socket.socket], None]) -> None:
        """Serve the connections that the others pass on."""
        path = self._folder / f"inbox-{self._index}"
        path.unlink(missing_ok=True)
        inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        inbox.setblocking(False)
        inbox.bind(str(path))

        def receive() -> None:
            try:
                _, descriptors, _, _ = socket.recv_fds(inbox, 16, 4)
            except OSError:
                return
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                sock.setblocking(False)
                serve(sock)

        asyncio.get_running_loop().add_reader(inbox.fileno(), receive)
        self._inbox = inbox

    def _path(self, index: int) -> Path:
        return self._folder / f"worker-{index}"


async def _write(writer: asyncio.StreamWriter, value: Any) -> None:
    data = msgpack.packb(value)
    writer.write(struct.pack("<I", len(data)) + data)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Any:
    [length] = struct.unpack("<I", await reader.readexactly(4))
    return msgpack.unpackb(await reader.readexactly(length))
