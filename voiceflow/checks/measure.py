"""Everything that is measured of one recording, and of all of them together: rows of tables."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from voiceflow.audio import file_digest, read_file, resample
from voiceflow.checks.fingerprints import PrintArray, SpokenArray, fingerprint, same_sounds, spoken_words
from voiceflow.checks.labels import EVIDENCE_S, contrast_db, label_lag, true_units, turn_rows, wrong_channel
from voiceflow.checks.signal import band, clipped, dropout_s, levels_db, low_band_share, voice_height
from voiceflow.checks.voices import VectorArray, Voices, voice_vectors
from voiceflow.config import ValidateConfig
from voiceflow.corpora.read import UNSPLIT, AudioPlace
from voiceflow.errors import VoiceflowError
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.turns import Turn

Row = dict[str, Any]
VOICES = "voices"
"""Condition of files of single voices, which may be as short as a word."""
MIN_COPY_S = 8.0
"""Words that are alike are no copies."""
ENOUGH_SHARE = 0.9
"""Of the band that models hear, where a filter may already fall off."""


@dataclass(frozen=True)
class Item:
    """One recording to be checked, whatever kind of folder it is from."""

    name: str
    place: AudioPlace
    split: str = UNSPLIT
    """train, dev or test, or `UNSPLIT` where it belongs to none."""
    condition: str = UNSPLIT
    turns: tuple[Turn, ...] = ()
    turns_error: str = ""
    is_made: bool = False
    """Whether the turns are exact because the conversation was made."""
    declared_rate_hz: int | None = None
    """What the manifest says; None where it says nothing."""
    declared_speakers: tuple[str, ...] | None = None
    declared_digest: str = ""


@dataclass
class Measured:
    """What was measured of one recording."""

    row: Row
    turns: list[Row]
    words_T: PrintArray = field(default_factory=lambda: np.zeros(0, np.uint32))
    spoken_T: SpokenArray = field(default_factory=lambda: np.zeros(0, np.bool_))
    vectors: dict[str, list[VectorArray]] = field(default_factory=dict)


def measure_item(item: Item, config: ValidateConfig) -> Measured:
    """Read one recording and measure it.

    An unreadable file or RTTM becomes a row that says so; nothing is raised.
    """
    row = _row_of(item)
    try:
        source = item.place.source()
        samples_NC, rate_hz = read_file(source, name=str(item.place))
        digest = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else file_digest(source)
    except (VoiceflowError, OSError) as err:
        return Measured(row | {"read_error": str(err)}, turn_rows(item.name, item.turns, float("inf")))
    finite = np.isfinite(samples_NC)
    samples_NC = np.where(finite, samples_NC, np.float32(0.0))
    samples_N = samples_NC.mean(axis=1, dtype=np.float32)
    duration_s = len(samples_N) / rate_hz
    whole = [replace(turn, end_s=duration_s) if turn.end_s == math.inf else turn for turn in item.turns]
    turns, unit = true_units(whole, duration_s)
    level_db_T = levels_db(samples_N, rate_hz)
    mix_db, lag, spectrum = (
        contrast_db(level_db_T, turns),
        label_lag(level_db_T, turns),
        band(samples_N, rate_hz, turns),
    )
    # What lies above the band that models hear may be missing, as in what was recorded at 16 kHz and stored at more.
    heard_share = min(1.0, spectrum.bandwidth_share * rate_hz / min(rate_hz, SAMPLE_RATE_HZ))
    if rate_hz > SAMPLE_RATE_HZ and heard_share >= ENOUGH_SHARE:
        heard_share = 1.0
    full_scale_share, clip_runs = clipped(samples_NC, rate_hz)
    declared_hz = rate_hz if item.declared_rate_hz is None else item.declared_rate_hz
    row |= {
        "digest": digest,
        "samples_digest": hashlib.sha256(np.round(samples_N * 32768.0).astype(np.int32).tobytes()).hexdigest(),
        "digest_agrees": item.declared_digest in ("", digest),
        "rate_hz": rate_hz,
        "declared_rate_hz": declared_hz,
        "rate_agrees": rate_hz == declared_hz,
        "duration_s": duration_s,
        "length_s": None if item.condition == VOICES else duration_s,
        "num_bad_samples": int(finite.size - finite.sum()),
        "silence_fraction": float(np.mean(level_db_T < config.silence_dbfs)) if len(level_db_T) else 1.0,
        "clipped_fraction": full_scale_share,
        "clip_runs_per_minute": clip_runs,
        "dc_offset": float(abs(samples_N.mean())) if len(samples_N) else 0.0,
        "dropout_s": dropout_s(samples_N, rate_hz, turns),
        "bandwidth_hz": spectrum.bandwidth_share * rate_hz / 2.0,
        "bandwidth_share": 1.0 if item.condition in config.telephone_conditions else heard_share,
        # An edge near the top is no lie about the rate, but no microphone has one either.
        "codec_edge_db": spectrum.edge_db if config.min_bandwidth_share <= heard_share < 1.0 else 0.0,
        "hole_share": spectrum.hole_share,
        "low_band_share": low_band_share(samples_N, rate_hz, turns),
        "voice_height": voice_height(samples_N, rate_hz),
        "turn_unit": unit,
        "wrong_channel": wrong_channel(samples_NC, rate_hz, turns, mix_db),
        "label_contrast_db": mix_db if item.is_made else None,
        "recorded_contrast_db": None if item.is_made else mix_db,
        "label_lag_s": lag.most_s,
        "label_lag_gain": lag.gain * min(1.0, duration_s / EVIDENCE_S),
    }
    row["label_drift_s"] = abs(lag.most_s) if row["label_lag_gain"] >= config.min_label_lag_gain else 0.0
    heard_N = resample(samples_N, rate_hz) if rate_hz >= 8000 else samples_N
    words_T = fingerprint(samples_N, rate_hz)
    return Measured(
        row,
        turn_rows(item.name, turns, duration_s),
        words_T,
        spoken_words(len(words_T), turns),
        voice_vectors(heard_N, turns) if rate_hz >= 8000 and len(turns) else {},
    )


def _row_of(item: Item) -> Row:
    """A row as it is before the audio was read."""
    speakers = sorted({turn.speaker for turn in item.turns})
    return {
        "name": item.name,
        "place": str(item.place),
        "split": item.split,
        "condition": item.condition,
        "declared_rate_hz": item.declared_rate_hz,
        "prepared_rate_hz": item.declared_rate_hz if item.declared_digest else None,
        "num_speakers": len(speakers),
        "turn_speakers": speakers,
        "at_s": min((turn.start_s for turn in item.turns), default=0.0),
        "speakers_agree": item.declared_speakers is None or speakers == sorted(set(item.declared_speakers)),
        # Labels of real recordings bridge pauses and crosstalk: there the same checks only warn.
        "num_turns": len(item.turns) if item.is_made else None,
        "num_turns_recorded": None if item.is_made else len(item.turns),
        "turns_error": item.turns_error,
        "read_error": "",
        "digest": "",
        "samples_digest": "",
        "digest_agrees": True,
        "rate_hz": item.declared_rate_hz,
        "rate_agrees": True,
        "duration_s": None,
        "length_s": None,
        "num_bad_samples": 0,
        "silence_fraction": 0.0,
        "clipped_fraction": 0.0,
        "clip_runs_per_minute": 0.0,
        "dc_offset": 0.0,
        "dropout_s": 0.0,
        "bandwidth_hz": 0.0,
        "bandwidth_share": 1.0,
        "codec_edge_db": 0.0,
        "hole_share": 0.0,
        "low_band_share": 0.0,
        "voice_height": None,
        "turn_unit": "seconds",
        "wrong_channel": "",
        "label_contrast_db": None,
        "recorded_contrast_db": None,
        "label_lag_s": 0.0,
        "label_lag_gain": 0.0,
        "label_drift_s": 0.0,
        "copies": 1,
        "same_audio": "",
        "near_copy_share": 0.0,
        "near_copy_of": "",
    }


def tables_of(
    items: Sequence[Item], measured: Sequence[Measured], config: ValidateConfig
) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of recordings, turns and speakers, with what only shows between recordings: copies, and voices again."""
    recording_rows: list[Row] = []
    all_turn_rows: list[Row] = []
    vectors: dict[str, dict[str, list[VectorArray]]] = defaultdict(dict)
    spoken: dict[str, set[str]] = defaultdict(set)
    for item, one in zip(items, measured, strict=True):
        recording_rows.append(one.row)
        for row in one.turns:
            # Transcribers of real meetings do let the words of one speaker touch.
            kept, other = "overlap_with_itself_s", "recorded_overlap_with_itself_s"
            row[other] = None if item.is_made else row[kept]
            row[kept] = row[kept] if item.is_made else None
        all_turn_rows += one.turns
        for speaker in {*(item.declared_speakers or ()), *one.row["turn_speakers"]}:
            spoken[speaker].add(item.split)
        for speaker, found in one.vectors.items():
            vectors[speaker][item.name] = found
    _tell_copies(measured)
    return recording_rows, all_turn_rows, _speaker_rows(spoken, vectors, config)


def _tell_copies(measured: Sequence[Measured]) -> None:
    rows = [one.row for one in measured]
    groups: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        groups[row["samples_digest"] or row["place"]].append(row["name"])
    for row in rows:
        same = groups[row["samples_digest"] or row["place"]]
        row |= {"copies": len(same), "same_audio": ", ".join(name for name in same if name != row["name"])}
    for pair in same_sounds([one.words_T for one in measured], [one.spoken_T for one in measured]):
        first, second = rows[pair.first], rows[pair.second]
        if first["samples_digest"] == second["samples_digest"]:
            continue
        share = pair.matched_s / max(MIN_COPY_S, min(first["duration_s"], second["duration_s"]))
        for row, other in ((first, second), (second, first)):
            if share > row["near_copy_share"]:
                row |= {"near_copy_share": min(1.0, share), "near_copy_of": other["name"]}


def _speaker_rows(
    spoken: dict[str, set[str]], vectors: dict[str, dict[str, list[VectorArray]]], config: ValidateConfig
) -> list[Row]:
    """Who is in which splits, by name, and which names sound like one person, in one split or in two."""
    rows = {
        speaker: {
            "name": speaker,
            # Conversations that belong to no split are never trained on; nor are they what models are chosen by.
            "num_splits": len(splits - {UNSPLIT}),
            "splits": ", ".join(sorted(splits)),
            "same_voice_score": 0.0,
            "same_voice_likeness": 0.0,
            "leaked_voice_score": 0.0,
            "same_voice_as": "",
        }
        for speaker, splits in sorted(spoken.items())
    }
    voices = Voices(vectors)
    pairs = [("same_voice_likeness", pair) for pair in voices.same_in_recording(min_likeness=config.min_voice_likeness)]
    for pair in voices.same_anywhere(min_score=config.min_voice_score):
        splits = (spoken[pair.first] | spoken[pair.second]) - {UNSPLIT}
        pairs.append(("leaked_voice_score" if len(splits) > 1 else "same_voice_score", pair))
    for column, pair in pairs:
        for name, other in ((pair.first, pair.second), (pair.second, pair.first)):
            shown = f"{other} ({', '.join(sorted(spoken[other]))})"
            rows[name] |= {column: pair.score, "same_voice_as": shown}
    return list(rows.values())
