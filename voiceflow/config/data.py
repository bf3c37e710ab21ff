"""How data is made and checked: the sections `prepare` and `validate`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from voiceflow.config.base import Section


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

    @model_validator(mode="after")
    def _has_a_style(self) -> Self:
        if not sum(style.weight for style in self.styles.values()):
            raise ValueError("one of the styles must have a weight above 0")
        return self


class PrepareConfig(Section):
    """How conversations are made from utterances."""

    corpus: str
    """Folder of utterances: utterances.csv, a LibriSpeech-style tree, or a lhotse manifest."""
    recorded: str | None
    """Folder of recorded conversations (audio and RTTM) taken as they are; null for none."""
    noises: str | None
    """Folder of recordings without speech, such as `voiceflow data get musan` stores. Where it is empty there are made
    ones alone; null means the same, but `dvc repro` wants a folder."""
    rooms: str | None
    """Folder of recorded impulse responses, such as `voiceflow data get rirs` stores; empty or null likewise."""
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
