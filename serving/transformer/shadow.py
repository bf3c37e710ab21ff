"""A challenger that hears a stream of the champion: what it says is compared, never sent."""

from dataclasses import dataclass, field

from serving.transformer.engine import Stream
from voiceflow.audio import FloatArray
from voiceflow.streaming.cross_der import CrossDer

COMPARE_S = 5.0
"""How often it is compared, in seconds of audio."""
MAX_BEHIND_S = 10.0
"""A shadow that has so much left to hear is given up."""


@dataclass(eq=False)
class Shadow:
    """One stream's.

    Args:
        stream: In the challenger's engine.
    """

    stream: Stream
    _meter: CrossDer = field(default_factory=CrossDer)

    def __post_init__(self) -> None:
        self.stream.is_shadow = True
        self.stream.set_aside()

    @property
    def is_over(self) -> bool:
        """Whether the challenger was withdrawn, failed or fell behind."""
        return self.stream.failure is not None or self.stream.session.waiting_s > MAX_BEHIND_S

    def receive_audio(self, data: bytes, now_s: float) -> None:
        """The packet that the stream received, at the loop's time."""
        if not self.is_over:
            self.stream.session.receive_audio(data)
            self._heard(now_s)

    def receive_samples(self, samples_N: FloatArray, now_s: float) -> None:
        """The decoded audio that the stream received."""
        if not self.is_over:
            self.stream.session.receive_samples(samples_N)
            self._heard(now_s)

    def _heard(self, now_s: float) -> None:
        self.stream.heard(now_s)
        # Its events are for nobody.
        self.stream.session.events_to_send()

    def compare(self, stream: Stream) -> None:
        """Count how far both differ where neither will change what it said, once there is enough of it."""
        champion, challenger = stream.session, self.stream.session
        until_s = min(champion.stable_s, challenger.stable_s)
        compared_s = self._meter.compared_s
        if until_s - compared_s < COMPARE_S:
            return
        turns = [[turn for turn in one.turns if turn.end_s > compared_s] for one in (champion, challenger)]
        error_s, speech_s = self._meter.compare(*turns, until_s=until_s)
        metrics = self.stream.engine.metrics
        metrics.different.inc(error_s)
        metrics.compared.inc(speech_s)

    def leave(self) -> None:
        """The stream is over, or goes on elsewhere."""
        self.stream.leave()
