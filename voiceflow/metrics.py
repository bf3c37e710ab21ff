"""How wrong "who speaks when" is: DER, JER, speaker counts and label flips, with pyannote.metrics."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voiceflow.turns import Turn

MIN_ALONE_S = 0.3
"""Speech alone that tells a turn's label."""


@dataclass(frozen=True)
class Score:
    """Errors of one recording, in seconds; `der` and `jer` are fractions."""

    reference_s: float
    """Reference speech, overlapped speech counted for each speaker."""
    missed_s: float
    false_alarm_s: float
    confusion_s: float
    jer: float
    num_speakers: int
    num_speakers_found: int
    flips: int
    """Times a reference speaker's label changed from one of his turns to the next."""
    duration_s: float

    @property
    def der(self) -> float:
        """Diarization error rate; 1.0 for each second of false alarm where there is no speech to find."""
        error_s = self.missed_s + self.false_alarm_s + self.confusion_s
        return error_s / self.reference_s if self.reference_s > 0 else float(error_s > 0)


def score(
    reference: Sequence[Turn], hypothesis: Sequence[Turn], *, duration_s: float, collar_per_side_s: float = 0.0
) -> Score:
    """Score one recording, overlapped speech included.

    Args:
        reference: True turns.
        hypothesis: Turns to judge.
        duration_s: Length of the recording: all of it is scored.
        collar_per_side_s: Not scored on each side of a reference boundary, as NIST counts it
            (pyannote's `collar` is the sum of both sides).
    """
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

    def annotate(turns: Iterable[Turn]) -> Any:
        annotation = Annotation()
        for number, turn in enumerate(turns):
            annotation[Segment(turn.start_s, turn.end_s), number] = turn.speaker
        return annotation

    annotations = annotate(reference), annotate(hypothesis)
    uem = Timeline([Segment(0.0, max(duration_s, 1e-3))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = DiarizationErrorRate(collar=2.0 * collar_per_side_s, skip_overlap=False)
        parts = metric.compute_components(*annotations, uem=uem)
        jer = float(JaccardErrorRate(collar=2.0 * collar_per_side_s)(*annotations, uem=uem)) if reference else 0.0
    return Score(
        float(parts["total"]),
        float(parts["missed detection"]),
        float(parts["false alarm"]),
        float(parts["confusion"]),
        jer,
        len({turn.speaker for turn in reference}),
        len({turn.speaker for turn in hypothesis}),
        count_flips(reference, hypothesis),
        duration_s,
    )


def count_flips(reference: Sequence[Turn], hypothesis: Sequence[Turn]) -> int:
    """Times a speaker's label changes.

    For each true turn the label that covers most of what its speaker says alone is compared with the one before;
    a turn of which less than `MIN_ALONE_S` is spoken alone tells nothing.
    """
    last: dict[str, str] = {}
    flips = 0
    for turn in sorted(reference):
        covered: dict[str, float] = {}
        alone = _alone(turn, reference)
        if sum(end_s - start_s for start_s, end_s in alone) < MIN_ALONE_S:
            continue
        for other in hypothesis:
            for start_s, end_s in alone:
                shared_s = min(end_s, other.end_s) - max(start_s, other.start_s)
                if shared_s > 0:
                    covered[other.speaker] = covered.get(other.speaker, 0.0) + shared_s
        if not covered:
            continue
        label = max(covered, key=lambda name: (covered[name], name))
        flips += turn.speaker in last and last[turn.speaker] != label
        last[turn.speaker] = label
    return flips


def _alone(turn: Turn, turns: Sequence[Turn]) -> list[tuple[float, float]]:
    """Spans of a turn in which nobody else speaks."""
    spans = [(turn.start_s, turn.end_s)]
    for other in turns:
        if other.speaker != turn.speaker and other.start_s < turn.end_s and other.end_s > turn.start_s:
            spans = [
                part
                for start_s, end_s in spans
                for part in ((start_s, min(end_s, other.start_s)), (max(start_s, other.end_s), end_s))
                if part[1] > part[0]
            ]
    return spans


def summarise(scores: Iterable[Score]) -> dict[str, float]:
    """Figures of several recordings together: errors and speech are summed, then divided."""
    rows = list(scores)
    reference_s = sum(row.reference_s for row in rows)
    safe_s = max(reference_s, 1e-9)
    errors = {
        name: sum(getattr(row, f"{name}_s") for row in rows) / safe_s for name in ("missed", "false_alarm", "confusion")
    }
    minutes = sum(row.duration_s for row in rows) / 60.0
    return {
        "recordings": len(rows),
        "reference_s": round(reference_s, 3),
        "der": round(sum(errors.values()), 6),
        **{name: round(value, 6) for name, value in errors.items()},
        "jer": round(sum(row.jer for row in rows) / max(1, len(rows)), 6),
        "speaker_count_accuracy": round(
            sum(row.num_speakers == row.num_speakers_found for row in rows) / max(1, len(rows)), 6
        ),
        "flips_per_minute": round(sum(row.flips for row in rows) / max(minutes, 1e-9), 6),
    }


def der_interval(scores: Iterable[Score], *, resamples: int = 2000, seed: int = 11) -> tuple[float, float]:
    """95 % interval of the DER of recordings together, by bootstrap over recordings.

    Source:
        Bisani and Ney, Bootstrap estimates for confidence intervals, ICASSP 2004.
    """
    rows = list(scores)
    errors_s = np.array([row.missed_s + row.false_alarm_s + row.confusion_s for row in rows])
    speech_s = np.array([row.reference_s for row in rows])
    draws = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    ders = errors_s[draws].sum(axis=1) / np.maximum(speech_s[draws].sum(axis=1), 1e-9)
    low, high = np.percentile(ders, [2.5, 97.5])
    return round(float(low), 6), round(float(high), 6)


def by_slice(scores: Mapping[str, Score], slices: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """`summarise` for each slice, a name and the recordings in it."""
    return {name: summarise(scores[recording] for recording in members) for name, members in slices.items() if members}


def as_row(recording: str, result: Score) -> dict[str, Any]:
    """A score as a flat row for tables."""
    return {"recording": recording, "der": round(result.der, 6), **asdict(result)}
