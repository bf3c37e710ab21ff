"""How fast audio is read of one stream."""

import asyncio

from voiceflow.config import StreamingConfig
from voiceflow.timebase import SAMPLE_RATE_HZ


class Pace:
    """A bucket of `burst_s` of audio that fills by `max_speed` seconds a second.

    Args:
        config: `max_speed` 0 means that all is read as it comes.
    """

    def __init__(self, config: StreamingConfig) -> None:
        self._speed = config.max_speed * SAMPLE_RATE_HZ
        self._burst = self._left = config.burst_s * SAMPLE_RATE_HZ
        self._filled_s = asyncio.get_running_loop().time()

    def received(self, num_samples: int) -> None:
        """So much audio came, at 16 kHz."""
        self._left -= num_samples

    def may_receive(self, now_s: float) -> bool:
        """Whether more may be read."""
        if not self._speed:
            return True
        if self._left < 0.0:  # filled only when it is needed: most streams never are ahead
            self._left = min(self._burst, self._left + (now_s - self._filled_s) * self._speed)
            self._filled_s = now_s
        return self._left >= 0.0

    async def wait(self) -> None:
        """Until more may be read."""
        while not self.may_receive(asyncio.get_running_loop().time()):
            await asyncio.sleep(0.02)
