"""A candidate beside the champion: both hear the same conversations in the same run, and gates judge what came."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voiceflow.config import EvaluateConfig, PromoteConfig
from voiceflow.features import step_features
from voiceflow.gates import (
    Compared,
    Verdict,
    behaviour_gate,
    compare,
    data_gate,
    der_gate,
    long_stream_gate,
    slowdown_gate,
    stability_gate,
)
from voiceflow.metrics import by_slice, score, summarise
from voiceflow.probes import find_faults
from voiceflow.runtime import StepModel
from voiceflow.stages.dataset import Recording, read_samples, read_summary, read_turns
from voiceflow.stages.latency import measure
from voiceflow.stages.scoring import SplitScores, errors_s, held_out, live_slices, slices_of
from voiceflow.streaming.batch import stream_recordings
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import LOOKAHEAD_STEPS_BY_LATENCY_S, SAMPLE_RATE_HZ
from voiceflow.turns import Turn

PROBE_S = 40.0
"""Of a conversation that the probes hear."""
TIMED_BATCH, TIMED_ROUNDS = 32, 7

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """What came of it."""

    gates: list[Verdict]
    overall: Compared
    slices: dict[str, Compared]
    figures: dict[str, dict[str, dict[str, float]]]
    """`champion` and `candidate`: figures overall and by slice."""
    by_latency: dict[str, dict[str, float]]
    """DER of both at each latency that is served, in seconds."""


def try_out(
    config: PromoteConfig,
    evaluation: EvaluateConfig,
    champion: StepModel,
    candidate: StepModel,
    dataset: Path,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Trial:
    """Stream a candidate and the champion over the held-out conversations, and time both in turns.

    Args:
        config: Margins and bounds.
        evaluation: Latency at which both stream, and the DER gate.
        champion: The model that serves now.
        candidate: The file that would.
        dataset: Output of `prepare`.
        progress: Called as work goes on.
    """
    recordings = held_out(dataset)
    gates = [data_gate(candidate.metadata.data_revision, str(read_summary(dataset).get("revision", "")))]
    progress("stream the held-out conversations", 1, 4)
    models = {"champion": champion, "candidate": candidate}
    scored = {
        name: SplitScores(dataset, recordings, model, latency_s=evaluation.latency_s) for name, model in models.items()
    }
    slices = slices_of(recordings) | live_slices(recordings, scored["champion"].references)
    figures = {
        name: {"overall": summarise(scores.scores.values()) | {"revisions_per_minute": scores.revisions_per_minute}}
        | by_slice(scores.scores, slices)
        for name, scores in scored.items()
    }
    ours = figures["candidate"]
    gates.append(der_gate(ours["overall"], {name: ours[name] for name in slices}, evaluation))
    gates.append(stability_gate(figures["champion"]["overall"], ours["overall"], config))
    by_latency = {
        f"{latency_s:g}": {
            name: figures[name]["overall"]["der"]
            if latency_s == evaluation.latency_s
            else summarise(SplitScores(dataset, recordings, model, latency_s=latency_s).scores.values())["der"]
            for name, model in models.items()
        }
        for latency_s in sorted(LOOKAHEAD_STEPS_BY_LATENCY_S)
    }
    progress("stream for a quarter of an hour", 2, 4)
    late = {name: _late_der(model, dataset, recordings, config, evaluation.latency_s) for name, model in models.items()}
    gates.append(long_stream_gate(late["champion"], late["candidate"], config))
    progress("time a step", 3, 4)
    gates.append(slowdown_gate(slowdown(champion, candidate), config))
    progress("time a step", 4, 4)

    def compared(names: Sequence[str]) -> Compared:
        before, now = scored["champion"].scores, scored["candidate"].scores
        return compare(
            errors_s(before, names), errors_s(now, names), [before[name].reference_s for name in names], config
        )

    return Trial(
        gates,
        compared([recording.name for recording in recordings]),
        {
            name: compared(members)
            for name, members in slices.items()
            if len(members) >= evaluation.min_slice_recordings
        },
        figures,
        by_latency,
    )


def probe(model: StepModel, dataset: Path) -> Verdict:
    """Whether a file that can be loaded does what a servable model must, on a held-out conversation."""
    recording = max(held_out(dataset), key=lambda one: (one.condition == "close", len(one.speakers) > 1, one.name))
    samples_N = read_samples(dataset, recording)[: int(PROBE_S * SAMPLE_RATE_HZ)]
    return behaviour_gate(find_faults(model, step_features(samples_N), read_turns(dataset, recording)))


def slowdown(champion: StepModel, candidate: StepModel) -> float:
    """Time of the candidate's step over the champion's: medians of rounds in which they take turns."""
    ratios = []
    for _ in range(TIMED_ROUNDS):
        before, now = (measure(model, TIMED_BATCH, repeats=20, warmup=3)["p50_ms"] for model in (champion, candidate))
        ratios.append(now / before)
    return float(np.median(ratios))


def _late_der(
    model: StepModel, dataset: Path, recordings: Sequence[Recording], config: PromoteConfig, latency_s: float
) -> float:
    """DER of the end of one long stream: a conversation of two, clearly heard where there is one, again and again."""
    few = [one for one in recordings if len(one.speakers) == 2] or list(recordings)
    recording = min(few, key=lambda one: (one.condition != "close", one.name))
    samples_N, turns = read_samples(dataset, recording), read_turns(dataset, recording)
    once_s = len(samples_N) / SAMPLE_RATE_HZ
    times = math.ceil(config.long_stream_s / once_s)
    reference = [
        Turn(turn.start_s + once * once_s, turn.end_s + once * once_s, turn.speaker)
        for once in range(times)
        for turn in turns
    ]
    settings = StreamSettings("pcm_f32le", latency_s=latency_s)
    (stream,) = stream_recordings([np.tile(samples_N, times)], model, settings)

    def late(turns: Sequence[Turn]) -> list[Turn]:
        return [
            Turn(max(0.0, turn.start_s - config.long_from_s), turn.end_s - config.long_from_s, turn.speaker)
            for turn in turns
            if turn.end_s > config.long_from_s
        ]

    return score(late(reference), late(stream.turns), duration_s=times * once_s - config.long_from_s).der


def as_tables(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """DER of champion and candidate by slice."""
    return {
        name: {
            "recordings": int(row["recordings"]),
            "candidate": row["der"],
            "champion": figures["champion"][name]["der"],
        }
        for name, row in figures["candidate"].items()
    }
