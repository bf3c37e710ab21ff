"""What params.yaml may say: one frozen, strict section a stage, and the one loader."""

import importlib.resources
import json
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from voiceflow.errors import ConfigError


class Section(BaseModel):
    """Base of all configuration: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


class SplitCounts(Section):
    """Simulated conversations in each split."""

    train: int = Field(ge=1)
    dev: int = Field(ge=1)
    test: int = Field(ge=1)


class ConditionWeights(Section):
    """How often each acoustic condition is drawn for training; held-out splits take all in turn."""

    close: float = Field(ge=0)
    room: float = Field(ge=0)
    far: float = Field(ge=0)
    telephone: float = Field(ge=0)


class TurnTakingConfig(Section):
    """How people take turns in held-out conversations."""

    turn_median_s: float = Field(gt=0)
    """Median of the log-normal turn length."""
    turn_sigma: float = Field(gt=0)
    """Standard deviation of the logarithm of the turn length."""
    gap_mean_s: float
    """Mean of the Gaussian offset between turns; negative offsets are overlaps."""
    gap_sigma_s: float = Field(gt=0)
    """Standard deviation of that offset."""
    pause_mean_s: float = Field(gt=0)
    """Mean of the exponential silence that follows some turns."""
    pause_probability: float = Field(ge=0, le=1)
    """How often a turn is followed by such a silence."""
    sparse_probability: float = Field(ge=0, le=1)
    """Share of conversations with long silences."""
    sparse_pause_mean_s: float = Field(gt=0)
    """Mean silence between turns in those."""
    backchannel_probability: float = Field(ge=0, le=1)
    """How often somebody else speaks briefly inside a turn."""


class StyleConfig(Section):
    """How people take turns in one kind of training conversation; `voiceflow data report` compares with real ones."""

    weight: float = Field(ge=0)
    """How often, relative to the others."""
    turn_median_s: float = Field(gt=0)
    """Median of the log-normal turn length."""
    turn_sigma: float = Field(gt=0)
    """Standard deviation of the logarithm of the turn length."""
    gap_mean_s: float
    """Mean of the Gaussian offset between turns of different speakers; negative offsets are overlaps."""
    gap_sigma_s: float = Field(gt=0)
    """Standard deviation of that offset."""
    pause_mean_s: float = Field(gt=0)
    """Mean of the exponential pause of a speaker who goes on."""
    goes_on_probability: float = Field(ge=0, le=1)
    """How often the same speaker goes on after a pause."""
    silence_probability: float = Field(ge=0, le=1)
    """How often a turn is followed by a silence."""
    silence_mean_s: float = Field(gt=0)
    """Mean of that exponential silence."""
    backchannels_per_minute: float = Field(ge=0)
    """Brief words of listeners, a minute of somebody else's turns."""
    spread: float = Field(ge=0)
    """How much busier or calmer single conversations are: the standard deviation of what shifts their values."""


class VarietyConfig(Section):
    """What training conversations have beyond held-out ones: dev and test stay as they were first drawn."""

    styles: dict[str, StyleConfig] = Field(min_length=1)
    """Kinds of conversations, by name."""
    headset_share: float = Field(ge=0, le=1)
    """Share of conversations through one microphone a speaker, mixed: near, quiet, full of breath."""
    context_share: float = Field(ge=0, le=1)
    """Share of voices that bring along what their recordings hold around the speech."""
    events_share: float = Field(ge=0, le=1)
    """Share of conversations with sounds that are no speech."""
    max_events_per_s: float = Field(ge=0)
    """Most of them a second, on average over a conversation."""
    lull_share: float = Field(ge=0, le=1)
    """Share of conversations with one long stretch in which nobody speaks."""
    late_share: float = Field(ge=0, le=1)
    """Share of conversations that begin late, after up to three quarters of their length."""
    join_share: float = Field(ge=0, le=1)
    """Share of speakers who come in after a tenth to seven tenths of the conversation."""
    leave_share: float = Field(ge=0, le=1)
    """Share of speakers who leave before its end."""
    moving_share: float = Field(ge=0, le=1)
    """Share of voices whose place and loudness change from turn to turn."""
    level_change_share: float = Field(ge=0, le=1)
    """Share of conversations whose level is turned up or down on the way."""
    gated_share: float = Field(ge=0, le=1)
    """Share of conversations whose pauses are cut to digital silence, as conference software does."""
    opus_share: float = Field(ge=0, le=1)
    """Share of conversations that have gone through Opus at the rates of calls; telephones go through G.711."""
    level_dbfs_range: tuple[float, float] = Field(strict=False)
    """As prepare.level_dbfs_range, for training."""
    stock_size: int = Field(ge=1)
    """Rooms of each kind, noises, and sounds of each kind that are made before the conversations are."""


class PrepareConfig(Section):
    """How conversations are made from utterances."""

    corpus: str
    """Folder of utterances: utterances.csv, a LibriSpeech-style tree, or a lhotse manifest."""
    recorded: str | None
    """Folder of recorded conversations (audio and RTTM) taken as they are; null for none."""
    noises: str | None
    """Folder of recordings without speech, such as `voiceflow data get musan` stores; null, or an empty one, for made
    ones alone."""
    rooms: str | None
    """Folder of recorded impulse responses, such as `voiceflow data get rirs` stores; null, or an empty one, for made
    ones alone."""
    seed: int = Field(ge=0)
    """Everything random follows from it: the same seed gives the same bytes."""
    conversations: SplitCounts
    conversation_s: float = Field(ge=10, le=3600)
    """Length of each conversation."""
    heldout_fraction: float = Field(gt=0, lt=0.5)
    """Share of eligible speakers kept for dev, and again for test."""
    train_share: float = Field(gt=0, le=1)
    """Share of the voices that are not held out which training hears; below 1 to see what voices are worth."""
    heldout_exclude: str
    """Regular expression of speaker ids that only train, such as ids that may be several people."""
    num_speakers_weights: list[float] = Field(min_length=1, max_length=8)
    """Relative frequency of conversations with 1, 2, ... speakers."""
    conditions: ConditionWeights
    turn_taking: TurnTakingConfig
    speed_range: tuple[float, float] = Field(strict=False)
    """Speed factors drawn for each training voice: a changed speed is a new voice."""
    level_dbfs_range: tuple[float, float] = Field(strict=False)
    """Level of speech in dB relative to full scale, drawn for each conversation."""
    variety: VarietyConfig
    num_workers: int = Field(ge=0)
    """Processes; 0 takes all cores. The result does not depend on it."""


class ValidateConfig(Section):
    """Bounds of the data checks; a critical fault refuses the data, a warning does not."""

    sample_rate_hz: int
    min_duration_s: float = Field(gt=0)
    max_duration_s: float = Field(gt=0)
    max_silence_fraction: float = Field(gt=0, le=1)
    """Share of 10 ms frames below `silence_dbfs` at which a recording counts as silent."""
    silence_dbfs: float
    max_clipped_fraction: float = Field(gt=0, lt=1)
    """Share of samples at full scale."""
    max_low_band_share: float = Field(gt=0, le=1)
    """Most share of speech energy below 70 Hz: voices stored at a higher rate than labelled sink there."""
    min_label_contrast_db: float
    """Least level of labelled over unlabelled audio, in dB, for labels that agree with the energy."""
    min_speakers: dict[str, int]
    """Least number of distinct speakers in each split."""
    max_clip_runs_per_minute: float = Field(ge=0)
    """Runs of three or more samples at a recording's largest value: clipped, and perhaps made quieter since."""
    max_dropout_s: float = Field(ge=0)
    """Exact digital silence inside turns."""
    telephone_conditions: list[str]
    """Conditions, or corpora, whose recordings are known to hold no more than a telephone's band."""
    min_bandwidth_share: float = Field(gt=0, lt=1)
    """A spectrum that ends like a wall below this share of half the rate was recorded at a lower rate."""
    max_hole_share: float = Field(gt=0, lt=1)
    """Share of the spectrum of loud frames that a codec has left out."""
    max_codec_edge_db: float = Field(gt=0)
    """Height of a wall above `min_bandwidth_share`, such as encoders put there."""
    max_label_drift_s: float = Field(gt=0)
    """Most that turns may be away from their audio, at the start or at the end."""
    min_label_lag_gain: float = Field(gt=0, lt=1)
    """Turns moved so must fit the levels so much better (difference of correlations) to be believed."""
    max_own_overlap_s: float = Field(ge=0)
    """Most that two turns of one speaker may overlap in real recordings; in made ones they never do."""
    max_copy_share: float = Field(gt=0, le=1)
    """Share of the shorter of two recordings that may be the same sound."""
    min_voice_score: float = Field(gt=0)
    """Two names are told to be one voice from so many standard deviations on, of the nearest other voices."""
    min_voice_likeness: float = Field(gt=0, lt=1)
    """So are two names of one recording from such a cosine on."""
    severity: dict[str, Literal["critical", "warning", "off"]]
    """What each rule does: refuse the data, warn, or nothing. Every rule is named."""
    quarantine: bool
    """Whether recordings with critical faults are kept out, and the rest goes on, rather than all being refused."""
    num_workers: int = Field(ge=0)
    """Processes; 0 takes all cores."""


class TrainConfig(Section):
    """How the network is trained."""

    seed: int = Field(ge=0)
    steps: int = Field(ge=1)
    """Optimiser steps of the whole schedule."""
    batch_size: int = Field(ge=1)
    chunk_s: float = Field(ge=2)
    """Length of the training excerpts in the first part of the schedule."""
    long_chunk_s: float = Field(ge=2)
    """Length in the second part, with proportionally fewer excerpts in a batch."""
    long_from: float = Field(ge=0, le=1)
    """Share of the schedule after which excerpts are long."""
    teacher_forcing: float = Field(ge=0, le=1)
    """Share of excerpts whose speaker profiles come from the true turns at first; it falls to a tenth."""
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    average_decay: float = Field(ge=0, lt=1)
    """Decay of the moving average of weights that is evaluated and exported."""
    evaluate_every_steps: int = Field(ge=1)
    patience: int = Field(ge=1)
    """Evaluations without a better dev DER before training stops."""
    checkpoint_every_steps: int = Field(ge=1)
    max_minutes: float | None = Field(gt=0)
    """Wall-clock limit; the learning rate follows whichever of steps and time is further on."""
    num_noises: int = Field(ge=0)
    """Half minutes of sounds that are no speech, made at the start and mixed into excerpts."""
    bf16: bool
    """bfloat16 autocast; accumulations and the decoder stay float32."""
    num_threads: int = Field(ge=0)
    """Torch threads; 0 takes torch's default."""
    init_from: Literal["scratch", "pretrained"]
    """Random weights, or the weights that ship in the package."""


class ModelConfig(Section):
    """Shape of the network."""

    hidden: int = Field(ge=8)
    """Width of the recurrent layers."""
    num_layers: int = Field(ge=1)
    value_dims: int = Field(ge=4)
    """Values of a frame kept for the look-ahead attention."""
    key_dims: int = Field(ge=2)
    num_heads: int = Field(ge=1)
    embedding_dims: int = Field(ge=4)
    past_steps: int = Field(ge=0)
    """Steps before the answered one that attention may look back on."""
    max_lookahead_steps: int = Field(ge=0)
    num_slots: int = Field(ge=1, le=16)
    slot_hidden: int = Field(ge=4)
    """Width of the decision between slots."""
    confirm_steps: float = Field(gt=0)
    """Clean speech, in steps, after which a new voice keeps its slot for good."""
    profile_steps: float = Field(gt=0)
    """Steps over which a speaker's profile is averaged at most."""


class DecisionConfig(Section):
    """From activities to turns; tuned on dev, written into the model file, which wins."""

    onset: float = Field(gt=0, lt=1)
    offset: float = Field(gt=0, lt=1)
    min_on_s: float = Field(ge=0)
    min_off_s: float = Field(ge=0)
    min_speaker_s: float = Field(ge=0)
    """Speech after which a voice is surely a speaker of its own; one heard for less, and gone, is given to the
    speaker it is most like."""
    forget_after_s: float = Field(gt=0)
    """Silence after which such a voice is gone."""
    merge_cosine: float = Field(gt=0, le=1)
    """Two speakers whose voices are more alike than this are one; 1 for never."""


class EvaluateConfig(Section):
    """How models are scored, and the DER gate."""

    latency_s: float = Field(gt=0)
    """Latency at which the headline figures are measured."""
    collars_per_side_s: list[float]
    max_der: float = Field(gt=0)
    """Gate: strict DER over the test split, as a fraction."""
    max_der_per_slice: float = Field(gt=0)
    """Gate: strict DER of the worst slice of at least `min_slice_recordings` recordings."""
    min_slice_recordings: int = Field(ge=1)
    max_flips_per_minute: float = Field(gt=0)
    """Gate: label flips, the mark of unstable identities."""


class ExportConfig(Section):
    """Which files are written, and their gates."""

    opset: int = Field(ge=17)
    max_parity_difference: float = Field(gt=0)
    """Gate: largest difference of activity between torch and ONNX fp32 over whole streams."""
    max_int8_der_difference: float = Field(gt=0)
    """Gate: int8 DER above fp32 on any slice, as a fraction."""
    max_size_mb: float = Field(gt=0)
    max_state_kib: float = Field(gt=0)


class LatencyConfig(Section):
    """How one model step is timed, and the latency gate of each device."""

    batch_sizes: list[int] = Field(min_length=1)
    repeats: int = Field(ge=10)
    warmup: int = Field(ge=1)
    max_p99_ms: dict[str, dict[str, float] | Literal["unmeasured"]]
    """Gate per device: p99 in ms by batch size. `unmeasured` refuses on that device."""
    min_streams_per_core: float = Field(gt=0)
    """Gate: streams held in real time by one thread at the best batch size (CPU)."""
    usd_per_hour: dict[str, float]
    """Price of what a figure was measured on: one core, one GPU with its share of the node."""
    max_usd_per_1000_stream_hours: float = Field(gt=0)
    """Gate: what the model step of 1000 streams costs in an hour, at the streams that were held."""


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


class Params(Section):
    """The whole of params.yaml, less its profiles."""

    prepare: PrepareConfig
    validate_: ValidateConfig = Field(alias="validate")
    model: ModelConfig
    train: TrainConfig
    decision: DecisionConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    latency: LatencyConfig
    promote: PromoteConfig
    rollout: RolloutConfig
    drift: DriftConfig
    streaming: StreamingConfig

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.decision.offset > self.decision.onset:
            raise ValueError("decision.offset must not exceed decision.onset")
        return self


S = TypeVar("S", bound=Section)


def load_params(path: Path | None = None, *, profile: str | None = None) -> Params:
    """Read params.yaml with one of its profiles laid over it.

    Args:
        path: The file; by default ./params.yaml, and where there is none the released
            one that the package carries.
        profile: A key of its `profiles`, or None for the plain values.

    Raises:
        ConfigError: Missing file, not YAML, unknown profile, unknown or wrong value.
    """
    text, name = _params_text(path)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"{name} is not YAML: {err}") from err
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: expected sections such as 'prepare:' and 'train:', got {type(raw).__name__}")
    profiles = raw.pop("profiles", None) or {}
    if profile is not None:
        if profile not in profiles:
            raise ConfigError(f"{name}: expected a profile of {sorted(profiles)}, got {profile!r}")
        raw = _overlay(raw, profiles[profile])
    return parse_config(Params, json.dumps(raw), name=name)


def _params_text(path: Path | None) -> tuple[str, str]:
    if path is None and Path("params.yaml").is_file():
        path = Path("params.yaml")
    if path is None:
        return importlib.resources.files("voiceflow.pretrained").joinpath("params.yaml").read_text(), "params.yaml"
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as err:
        raise ConfigError(f"{path} cannot be read ({err.strerror}); run from the repository or pass --params") from err


def parse_config(section: type[S], text: str, *, name: str = "configuration") -> S:
    """Parse one section from JSON text.

    Raises:
        ConfigError: Listing each wrong value with its path.
    """
    try:
        return section.model_validate_json(text)
    except ValidationError as err:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']} (got {fault['input']!r})"
            for fault in err.errors()
        )
        raise ConfigError(f"{name}: {faults}") from err


def _overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _overlay(merged[key], value)
        else:
            merged[key] = value
    return merged
