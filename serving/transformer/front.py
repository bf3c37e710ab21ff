"""The one port: WebSockets are taken by picows, every other connection is passed on to an HTTP server.

A new connection's first bytes are looked at and left in the socket, so that whoever gets it reads all of it.
"""

import asyncio
import logging
import select
import socket
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from picows import WSAutoPingStrategy, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSProtocol

from serving.api import live
from serving.api.access import SUBPROTOCOL, credential
from serving.api.connection import MAX_MESSAGE_BYTES, Connection, Talk
from serving.api.live import LiveTalk
from serving.api.native import NativeTalk
from serving.api.reference import ReferenceTalk
from serving.api.service import Service

MAX_HEAD_BYTES = 16 * 1024
HEAD_S = 10.0
"""So long a client has to send its request's head."""
LOOK_AGAIN_S = 0.02
HANDSHAKE_S = 5
PING_S = 20
"""A connection on which nothing came for so long is pinged, and cut if it does not answer for as long."""
BACKLOG = 2048
EVERYWHERE = ("", "::", "0.0.0.0")
SOCKET_BUFFER_BYTES = 128 * 1024
"""What waits in the kernel for one stream, each way: seconds of audio, not minutes."""
PassOn = Callable[[socket.socket], None]

# Errors that clients make with their frames are theirs to know, not the log's.
_quiet = logging.LoggerAdapter(logging.getLogger("voiceflow.picows"), {})
logging.getLogger("voiceflow.picows").setLevel(logging.CRITICAL)


def listen(host: str, port: int, *, share: bool) -> socket.socket:
    """A listening socket.

    Args:
        host: An address of this machine; empty, ``::`` or ``0.0.0.0`` for all.
        port: Its port.
        share: Whether other processes may listen on the same port.
    """
    if host in EVERYWHERE and socket.has_dualstack_ipv6():
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG, reuse_port=share
        )
    else:
        host = "" if host in EVERYWHERE else host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=share)
    listener.setblocking(False)
    return listener


class Front:
    """Accepts connections.

    Args:
        service: Where streams go.
        pass_on: Takes the sockets that are no WebSockets of ours.
    """

    def __init__(self, service: Service, pass_on: PassOn) -> None:
        self.service = service
        self._pass_on = pass_on
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, listener: socket.socket) -> None:
        """Accept from a listening socket from now on."""
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def take(self, sock: socket.socket) -> None:
        """Serve a connection that another worker accepted."""
        self._do(self._dispatch(sock, is_passed=True))

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(64):
            try:
                sock, _address = self._listener.accept()
            except OSError:  # none waits, or it is gone already; out of files: those open go on
                return
            sock.setblocking(False)
            self._do(self._dispatch(sock))

    def _do(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dispatch(self, sock: socket.socket, *, is_passed: bool = False) -> None:
        try:
            head = await asyncio.wait_for(self._head(sock), HEAD_S)
            if head is None:
                sock.close()
            elif _is_ours(head):
                fellows = self.service.fellows
                if fellows is not None and not is_passed:
                    variants = self.service.variants
                    num_streams = variants.num_streams
                    to = fellows.lighter(num_streams, is_full=num_streams >= variants.capacity)
                    if to is not None:
                        fellows.pass_on(sock, to)
                        return
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
                await self._loop.connect_accepted_socket(self._websocket, sock)
            else:
                self._pass_on(sock)
        except (OSError, TimeoutError):
            sock.close()

    async def _head(self, sock: socket.socket) -> bytes | None:
        """The request's head, left in the socket; None if the client is gone."""
        while True:
            try:
                data = sock.recv(MAX_HEAD_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                await self._readable(sock)
                continue
            if not data:
                return None
            head, end, _ = data.partition(b"\r\n\r\n")
            if end or len(data) >= MAX_HEAD_BYTES or not data[:1].isalpha():
                return head
            if _has_hung_up(sock):
                return None
            await asyncio.sleep(LOOK_AGAIN_S)  # what has come keeps the socket readable

    async def _readable(self, sock: socket.socket) -> None:
        future = self._loop.create_future()
        self._loop.add_reader(sock.fileno(), lambda: future.done() or future.set_result(None))
        try:
            await future
        finally:
            self._loop.remove_reader(sock.fileno())

    def _websocket(self) -> WSProtocol:
        return WSProtocol(
            None,
            None,
            False,
            self._listener_for,
            _quiet,
            True,
            HANDSHAKE_S,
            True,
            PING_S,
            PING_S,
            WSAutoPingStrategy.PING_WHEN_IDLE,
            False,  # pings count as frames do: `Connection` answers them
            MAX_MESSAGE_BYTES,
            None,
            16 * 1024,
        )

    def _listener_for(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        url = urlsplit(request.path.decode("latin-1"))
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in request.headers.items()}
        talk = self._talk(url.path, query, credential(headers, query))
        # A browser that named its key as a subprotocol hears back which protocol it is.
        offers = headers.get("sec-websocket-protocol", "").split(",")[0].strip()
        chosen = {"Sec-WebSocket-Protocol": SUBPROTOCOL} if offers == SUBPROTOCOL else None
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response(chosen), _Counted(self.service, talk)
        )

    def _talk(self, path: str, query: dict[str, str], shown: str | None) -> Talk:
        if path == "/ws/stream":
            return ReferenceTalk(self.service, shown)
        if path == live.PATH:
            return LiveTalk(self.service, query.get("token", ""), query.get("encoding", "pcm_f32le"))
        return NativeTalk(self.service, shown)


class _Counted(Connection):
    """A connection that the service knows of while it is open."""

    def __init__(self, service: Service, talk: Talk) -> None:
        model_metrics = service.variants.champion.engine.metrics
        super().__init__(talk, model_metrics, max_unsent_bytes=service.config.max_unsent_bytes)
        self._service = service

    def on_ws_connected(self, transport) -> None:
        """See `Connection`."""
        self._service.connections.add(self)
        super().on_ws_connected(transport)

    def on_ws_disconnected(self, transport) -> None:
        """See `Connection`."""
        self._service.connections.discard(self)
        super().on_ws_disconnected(transport)


def _has_hung_up(sock: socket.socket) -> bool:
    """Whether the other side will send no more."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


STREAM_PATHS = ("/v1/stream", "/ws/stream", live.PATH)


def _is_ours(head: bytes) -> bool:
    """Whether a request asks for a WebSocket on one of the stream paths."""
    request, _, headers = head.partition(b"\r\n")
    parts = request.split(b" ")
    if len(parts) != 3 or parts[0] != b"GET":
        return False
    path = parts[1].split(b"?")[0].decode("latin-1")
    lines = headers.lower().split(b"\r\n")
    upgrades = any(line.startswith(b"upgrade:") and b"websocket" in line for line in lines)
    return upgrades and path in STREAM_PATHS
