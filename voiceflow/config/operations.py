"""What becomes of models and streams: the sections `promote`, `rollout`, `drift` and `streaming`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from voiceflow.config.base import Section


class PromoteConfig(Section):
    """When a model becomes challenger or champion."""

    not_worse_margin: float = Field(ge=0)
    """DER, as a fraction, by which a slice may be worse and still count as not worse."""
    confidence: float = Field(gt=0.5, lt=1)
    """Of the interval that the comparison with the champion judges by."""
    bootstrap_resamples: int = Field(ge=100)
    seed: int = Field(ge=0)
    target_device: Literal["cpu", "t4"]
    """Where models run: latency must have been measured there."""
    max_slowdown: float = Field(ge=1)
    """Gate: time of a step beside the champion's, in the same run."""
    max_flips_factor: float = Field(ge=1)
    """Gate: label flips, and revised turns, a minute beside the champion's."""
    flips_slack_per_minute: float = Field(ge=0)
    """So many more are no reason to refuse, whatever the factor."""
    long_stream_s: float = Field(gt=0)
    """A stream of about this length, a held-out conversation again and again, is heard to its end."""
    long_from_s: float = Field(gt=0)
    """From here on it is scored."""
    max_long_loss: float = Field(ge=0)
    """Gate: DER after `long_from_s`, as a fraction, above the champion's."""


class RewardConfig(Section):
    """What a variant earns in a look, for the bandit: 1, less these times what was seen, at least 0."""

    errors: float = Field(ge=0)
    """Times the share of its streams that it lost."""
    late_answers: float = Field(ge=0)
    """Times the share of answers that came late."""
    flips_per_minute: float = Field(ge=0)
    """Times the label flips of a stream."""


class RolloutConfig(Section):
    """How a challenger is given more and more of the streams, on evidence."""

    steps: list[float] = Field(min_length=1)
    """Shares of new streams, in their order; the last is 1."""
    shadow: float = Field(ge=0, le=1)
    """Share of the champion's new streams that the challenger hears too, for `max_cross_der`."""
    look_s: float = Field(gt=0)
    """Time between two looks: four of Prometheus's scrapes or more. What came since the last is one observation."""
    min_looks: int = Field(ge=1)
    """Looks at a step before the next one."""
    max_looks: int = Field(ge=1)
    """Looks at a step after which it is held for somebody to decide, if the evidence is not there by then."""
    min_streams: int = Field(ge=1)
    """A look that saw fewer streams of the challenger says nothing."""
    false_alarm: float = Field(gt=0, lt=1)
    """Chance that a challenger which is within the margins is ever rolled back, for each measure."""
    false_advance: float = Field(gt=0, lt=1)
    """Chance that one which is beyond a margin passes a step, for each measure."""
    max_errors: float = Field(gt=0, lt=1)
    """Share of its streams that it loses in a look, above the champion's."""
    max_late: float = Field(gt=0, lt=1)
    """Share of answers that come late, above the champion's."""
    late_ms: float = Field(gt=0)
    """An answer is late that comes so long after the audio it needs."""
    max_flips_per_minute: float = Field(gt=0)
    """Label flips of a stream, above the champion's."""
    max_cross_der: float = Field(gt=0, lt=1)
    """DER of the challenger's answers to shadowed streams, taking the champion's for the truth."""
    reward: RewardConfig
    bandit_floor: float = Field(ge=0, le=0.5)
    """Least share of new streams of either variant while the bandit has not decided."""
    bandit_sure: float = Field(gt=0.5, lt=1)
    """The bandit promotes a challenger that is the better one with this probability, and rolls back in the reverse."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.steps != sorted(self.steps) or self.steps[-1] != 1.0 or self.steps[0] <= 0:
            raise ValueError("rollout.steps must be increasing shares that end with 1.0")
        return self


class DriftConfig(Section):
    """What is kept of live streams, and when they count as other streams than the model was judged on."""

    sample_share: float = Field(ge=0, le=1)
    """Share of streams whose statistics are kept; 0 for none."""
    min_audio_s: float = Field(gt=0)
    """Shorter streams say too little."""
    stretch_s: float = Field(gt=0)
    """A longer stream is told in stretches of this length."""
    keep_days: float = Field(gt=0)
    """After so long statistics are deleted."""
    window_streams: int = Field(ge=20)
    """The last so many are compared."""
    min_streams: int = Field(ge=10)
    """With fewer nothing is said."""
    false_alarm: float = Field(gt=0, lt=0.5)
    """Chance of any alarm in a comparison where nothing has changed, over all statistics together."""
    min_distance: float = Field(ge=0)
    """A change smaller than this, in standard deviations of the reference, is none, however sure it is."""
    more_of_slice: float = Field(ge=1)
    """Training for drift draws the condition it was named with so many times as often."""


class StreamingConfig(Section):
    """Defaults and limits of live streams."""

    latency_s: float = Field(gt=0)
    tick_ms: float = Field(ge=0)
    """Least time between two batched steps; larger makes larger batches."""
    max_batch: int = Field(ge=1)
    max_streams: int = Field(ge=1)
    """Streams that are held at most, whatever the machine could carry."""
    max_load: float = Field(gt=0, le=1)
    """A new stream is refused with 4429 where the engine is busy for more than this share of the time."""
    max_late_ms: float = Field(gt=0)
    """So is it where answers come, on average, so long after the audio that they need: others need the CPU too."""
    max_requests_per_minute: int = Field(ge=1)
    """New streams and other requests of one API key."""
    max_speed: float = Field(ge=0)
    """Audio seconds a second that are read of a stream in the long run; 0 for as many as come."""
    burst_s: float = Field(gt=0)
    """Audio by which a stream may be ahead of `max_speed`."""
    idle_s: float = Field(gt=0)
    """A stream without a message for this long is closed with 4408."""
    heartbeat_s: float = Field(gt=0)
    """A stream with nothing else to say says this often that it lives."""
    max_duration_s: float = Field(gt=0)
    """Audio of one stream at most."""
    resume_s: float = Field(ge=0)
    """So long a stream whose client is gone waits for it to come back."""
    checkpoint_s: float = Field(gt=0)
    """How often a stream is saved to the store, where there is one."""
    replay_s: float = Field(gt=0)
    """Audio of a stream that is kept where another model may have to go on with it, which hears it again."""
    keep_s: float = Field(gt=0)
    """How far back a stream's turns are remembered, and told again when their speaker turns out to be another."""
    max_packet_bytes: int = Field(ge=1)
    max_queued_audio_s: float = Field(gt=0)
    """Audio that may wait for the engine before reading from the socket pauses."""
    max_unsent_bytes: int = Field(ge=1)
    """Answers that may wait to be read by the client; it is told and the stream closed with 4429."""
