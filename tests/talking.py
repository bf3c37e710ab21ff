"""Clients that speak as far as a test lets them: what is tried happens in the middle of a stream on any machine."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from serving.clients.stream import StreamClient
from tests.conftest import eventually

TRICKLE_S, WORD_SAMPLES = 20.0, 1280
"""Who has nothing to say yet says a word now and then, and is not idle."""


class Script:
    """A recording that is said as far as `say` has allowed; by any number of clients.

    Args:
        samples_N: Mono float32 at 16 kHz.
    """

    def __init__(self, samples_N: np.ndarray) -> None:
        self._samples_N = samples_N
        self._until = 0
        self._changed = asyncio.Event()

    def say(self, until_s: float | None = None) -> None:
        """Go on up to a time, or to the end."""
        self._until = len(self._samples_N) if until_s is None else round(until_s * 16_000)
        self._changed.set()
        self._changed = asyncio.Event()

    async def audio(self) -> AsyncIterator[np.ndarray]:
        """For `StreamClient.run`."""
        begin = 0
        while begin < len(self._samples_N):
            end = self._until
            if begin >= end:
                try:
                    await asyncio.wait_for(self._changed.wait(), TRICKLE_S)
                    continue
                except TimeoutError:
                    end = begin + WORD_SAMPLES
            yield self._samples_N[begin:end]
            begin = end


async def heard(clients: Sequence[StreamClient], until_s: float, tasks: Sequence[asyncio.Task] = ()) -> None:
    """Until servers have answered so much of every client's audio.

    Raises:
        AssertionError: One has ended before.
    """

    def all_heard() -> bool:
        assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
        return all(client.started and client.answered_s >= until_s for client in clients)

    await asyncio.to_thread(eventually, all_heard, f"answers to {until_s:g} s of all clients")
