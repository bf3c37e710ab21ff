"""How fast audio is read of one stream."""

import asyncio

from voiceflow.config import StreamingConfig


class Pace:
    """A bucket of `burst_s` of audio that fills by `max_speed` seconds a second.

    Args:
        config: `max_speed` 0 means that all is read as it comes.
    """

    def __init__(self, config: StreamingConfig) -> None:
        self._speed = config.max_speed
        self._burst_s = config.burst_s
        self._left_s = config.burst_s
        self._filled_s = asyncio.get_running_loop().time()

    def received(self, audio_s: float) -> None:
        """So much audio came."""
        self._left_s -= audio_s

    def may_receive(self, now_s: float) -> bool:
        """Whether more may be read."""
        if not self._speed:
            return True
        if self._left_s < 0.0:  # filled only when it is needed: most streams never are ahead
            self._left_s = min(self._burst_s, self._left_s + (now_s - self._filled_s) * self._speed)
            self._filled_s = now_s
        return self._left_s >= 0.0

    async def wait(self) -> None:
        """Until more may be read."""
        while not self.may_receive(asyncio.get_running_loop().time()):
            await asyncio.sleep(0.02)
