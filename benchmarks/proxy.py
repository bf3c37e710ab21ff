"""A TCP proxy that cuts connections and changes where they lead: networks and load balancers at their worst."""

import asyncio
import contextlib
import random


class Proxy:
    """Forwards connections to a port of this machine.

    Args:
        target: The port.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.num_cut = 0
        self.num_open_at_last = 0
        """Connections when the trouble was over."""
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut(len(self._pairs))

    def cut(self, count: int) -> None:
        """Cut so many connections, drawn at random, without a word to either side."""
        for pair in random.sample(sorted(self._pairs, key=id), min(count, len(self._pairs))):
            self._pairs.discard(pair)
            self.num_cut += 1
            for writer in pair:
                writer.transport.abort()

    @property
    def num_open(self) -> int:
        """Connections that are forwarded."""
        return len(self._pairs)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, back)
        self._pairs.add(pair)
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        self._pairs.discard(pair)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
