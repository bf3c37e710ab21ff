"""The rules of `validate`: what must hold of which column, and how it is said when it does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from voiceflow.config import ValidateConfig
from voiceflow.errors import ConfigError

TABLES = ("recordings", "turns", "speakers", "splits", "conditions")
MIN_VOICE_HEIGHT = 0.27
"""Refused below. Of 44.1 kHz speech labelled 16 kHz about 70 % of recordings fall below, of clean ones none."""
LOW_VOICE_HEIGHT = 0.42
"""Warned of below: 97 % of such recordings, and about 1 % of clean ones (very low voices)."""
MIN_CONDITION_SHARE = 0.02
"""Warned of below: a condition that a split hardly has."""
MAX_DC_OFFSET = 0.02
SHORT_TURN_S = 0.05


@dataclass(frozen=True)
class Rule:
    """A bound on one column of one table."""

    name: str
    table: str
    column: str
    sentence: str
    """What is wrong where it does not hold."""
    least: float | None = None
    most: float | None = None
    equals: Any = None
    """The only value allowed, where there is no bound."""

    def badness(self, value: Any) -> float:
        """How far a value is from what is allowed, to put the worst first."""
        if self.least is not None and value < self.least:
            return float(self.least - value)
        return float(value - self.most) if self.most is not None else 1.0


def rules_of(config: ValidateConfig) -> list[Rule]:
    """Every rule, at the bounds of a configuration."""
    low = "voices lie too low for the labelled rate"
    quiet = "audio inside turns is not louder than outside"
    lengths = f"shorter than {config.min_duration_s:g} s or longer than {config.max_duration_s:g} s"
    two_names = "sounds like another name: one person under two"
    twice = "overlaps another turn of its speaker"
    codec = "a codec at a low bit rate has left its marks"
    return [
        Rule("unreadable_audio", "recordings", "read_error", "audio that cannot be read", equals=""),
        Rule("unreadable_turns", "recordings", "turns_error", "RTTM that cannot be read", equals=""),
        Rule("sample_rate", "recordings", "rate_agrees", "the file's rate is not the labelled one", equals=True),
        Rule(
            "sample_rate_expected", "recordings", "prepared_rate_hz",
            f"labelled rate is not {config.sample_rate_hz} Hz", equals=config.sample_rate_hz,
        ),
        Rule(
            "sample_rate_content", "recordings", "voice_height", f"{low}: recorded at a higher one",
            least=MIN_VOICE_HEIGHT,
        ),
        Rule(
            "sample_rate_low_band", "recordings", "low_band_share", f"{low}: most is hum",
            most=config.max_low_band_share,
        ),
        Rule(
            "narrow_band", "recordings", "bandwidth_share",
            "the spectrum ends like a wall far below half the labelled rate: recorded at a lower one",
            least=config.min_bandwidth_share,
        ),
        Rule(
            "duration", "recordings", "length_s", lengths, least=config.min_duration_s, most=config.max_duration_s
        ),
        Rule("silent_recording", "recordings", "silence_fraction", "silent", most=config.max_silence_fraction),
        Rule(
            "digital_silence", "recordings", "dropout_s", "exact digital silence inside turns: lost, or muted",
            most=config.max_dropout_s,
        ),
        Rule("clipped", "recordings", "clipped_fraction", "clipped at full scale", most=config.max_clipped_fraction),
        Rule(
            "clipping_runs", "recordings", "clip_runs_per_minute", "peaks cut flat, at full scale or before it",
            most=config.max_clip_runs_per_minute,
        ),
        Rule("nan_samples", "recordings", "num_bad_samples", "NaN or infinite samples", most=0),
        Rule("wrong_channel", "recordings", "wrong_channel", "the channel is not the one that was labelled", equals=""),
        Rule("dc_offset", "recordings", "dc_offset", "a constant offset", most=MAX_DC_OFFSET),
        Rule("codec_artefacts", "recordings", "hole_share", codec, most=config.max_hole_share),
        Rule("codec_artefacts", "recordings", "codec_edge_db", codec, most=config.max_codec_edge_db),
        Rule("low_voices", "recordings", "voice_height", f"{low}, or are very deep", least=LOW_VOICE_HEIGHT),
        Rule("duplicate_audio", "recordings", "copies", "the same audio in two recordings", most=1),
        Rule(
            "near_duplicate", "recordings", "near_copy_share", "the same sound as another recording, in other bytes",
            most=config.max_copy_share,
        ),
        Rule(
            "digest", "recordings", "digest_agrees", "the file is not the one that was prepared", equals=True
        ),
        Rule("annotation_units", "recordings", "turn_unit", "turns are not in seconds", equals="seconds"),
        Rule(
            "label_drift", "recordings", "label_drift_s", "turns run away from the audio",
            most=config.max_label_drift_s,
        ),
        Rule("labels_disagree", "recordings", "label_contrast_db", quiet, least=config.min_label_contrast_db),
        Rule(
            "recorded_labels_disagree", "recordings", "recorded_contrast_db", quiet, least=config.min_label_contrast_db
        ),
        Rule("missing_turns", "recordings", "num_turns", "no turns at all", least=1),
        Rule("no_turns", "recordings", "num_turns_recorded", "no turns at all", least=1),
        Rule(
            "speakers_disagree", "recordings", "speakers_agree", "speakers of the turns are not those listed",
            equals=True,
        ),
        Rule("turn_past_end", "turns", "past_end_s", "ends after the audio", most=0.0),
        Rule("speaker_overlaps_itself", "turns", "overlap_with_itself_s", twice, most=0.0),
        Rule(
            "speaker_overlaps_itself", "turns", "recorded_overlap_with_itself_s", twice, most=config.max_own_overlap_s
        ),
        Rule("short_turn", "turns", "duration_s", "shorter than 50 ms", least=SHORT_TURN_S),
        Rule("speaker_in_two_splits", "speakers", "num_splits", "is in more than one split", most=1),
        Rule(
            "voice_in_two_splits", "speakers", "leaked_voice_score",
            "sounds like another name in another split", most=config.min_voice_score,
        ),
        Rule("voice_under_two_names", "speakers", "same_voice_score", two_names, most=config.min_voice_score),
        Rule("voice_under_two_names", "speakers", "same_voice_likeness", two_names, most=config.min_voice_likeness),
        Rule("too_few_speakers", "splits", "shortfall", "has too few speakers", most=0),
        Rule("unbalanced_conditions", "conditions", "share", "hardly occurs", least=MIN_CONDITION_SHARE),
    ]  # fmt: skip


def check_severities(config: ValidateConfig) -> None:
    """Every rule has a severity, and nothing else has.

    Raises:
        ConfigError: Naming what is missing or unknown.
    """
    names = {rule.name for rule in rules_of(config)}
    missing, unknown = sorted(names - set(config.severity)), sorted(set(config.severity) - names)
    if missing or unknown:
        raise ConfigError(
            f"validate.severity: expected critical, warning or off for every rule; missing {missing}, unknown {unknown}"
        )


def expectations_of(rules: Sequence[Rule], config: ValidateConfig) -> list[Any]:
    """Great Expectations' form of rules; the number of the rule is in `meta`."""
    import great_expectations.expectations as gxe

    expectations = []
    for number, rule in enumerate(rules):
        severity = config.severity[rule.name]
        meta = {"check": rule.name, "sentence": rule.sentence, "rule": number}
        bounds: dict[str, Any]
        if rule.least is None and rule.most is None:
            kind, bounds = gxe.ExpectColumnValuesToBeInSet, {"value_set": [rule.equals]}
        else:
            kind, bounds = gxe.ExpectColumnValuesToBeBetween, {"min_value": rule.least, "max_value": rule.most}
        if severity != "off":
            expectations.append(kind(column=rule.column, severity=severity, meta=meta, **bounds))
    return expectations
