"""Eight planted shifts, each against streams as they were: is it raised within 200 streams, and how often is an alarm
false.

python -m benchmarks.drifts [--corpus data/speech] [--json FILE]
"""

import argparse
import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.items import sized
from voiceflow.adapters.drift_report import EvidentlyComparer
from voiceflow.audio import FloatArray
from voiceflow.config import DriftConfig, PrepareConfig, load_params
from voiceflow.corpora.read import read_utterances
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.simulation.acoustics import apply_response, noise
from voiceflow.simulation.conversations import ConversationPlan
from voiceflow.simulation.heldout import simulate
from voiceflow.simulation.speech import load_vad, speaker_segments
from voiceflow.stages.drift import drift
from voiceflow.stages.prepare import split_speakers
from voiceflow.streaming.batch import stream_statistics
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.workers import in_parallel

TALK_S = sized(40.0, tiny=12.0)
BATCH = sized(20, tiny=10)
NUM_REFERENCE, NUM_CLEAN, NUM_SHIFTED, NUM_DRAWS = sized((300, 600, 200, 100), tiny=(40, 40, 40, 1))
NUM_SHIFTS = sized(8, tiny=1)
LOOKS = sized((50, 100, 150, 200), tiny=(40,))
MAX_SPEECH_S = 60.0
Change = Callable[[np.random.Generator, FloatArray], FloatArray]


def _same(rng: np.random.Generator, samples: FloatArray) -> FloatArray:
    return samples


def _more_noise(rng: np.random.Generator, samples: FloatArray) -> FloatArray:
    """Ten times the power of what is there between words."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    floor = float(np.quantile(np.mean(frames**2, axis=1), 0.1))
    return samples + noise(rng, len(samples)) * np.float32(np.sqrt(9.0 * floor))


def _new_room(rng: np.random.Generator, samples: FloatArray) -> FloatArray:
    """A hall: 1.2 s of reverberation, as strong as the direct sound."""
    time_s = np.arange(int(0.8 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(len(time_s)) * np.exp(-6.9 * time_s / 1.2)
    tail /= np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return apply_response(samples, tail.astype(np.float32)) * np.float32(0.7)


def _codec(rng: np.random.Generator, samples: FloatArray) -> FloatArray:
    """Opus at its lowest rate."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS", compression_level=1.0)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0][: len(samples)]


def _quieter(rng: np.random.Generator, samples: FloatArray) -> FloatArray:
    return samples * np.float32(10.0 ** (-10.0 / 20.0))


SHIFTS: dict[str, dict[str, Any]] = {
    "telephone band": {"conditions": ("telephone",)},
    "+10 dB noise": {"change": _more_noise},
    "twice the speakers": {"speakers": (4, 6)},
    "new room": {"change": _new_room},
    "codec": {"change": _codec},
    "level": {"change": _quieter},
    "far field": {"conditions": ("far",)},
    # Turns half as long, and somebody says yes in nearly every one, as in Japanese.
    "another language's rhythm": {"turns": {"turn_median_s": 1.0, "backchannel_probability": 0.9, "pause_mean_s": 0.8}},
}
NORMAL: dict[str, Any] = {"conditions": ("close", "room"), "speakers": (2, 3), "change": _same, "turns": {}}


@functools.cache
def _segments(corpus: Path, speaker: str) -> list[Any]:
    return speaker_segments(_utterances(corpus)[speaker], _vad(), max_s=MAX_SPEECH_S)[0]


@functools.cache
def _utterances(corpus: Path) -> dict[str, list[Any]]:
    return read_utterances(corpus)


@functools.cache
def _vad() -> Any:
    return load_vad()


@functools.cache
def _model() -> StepModel:
    return StepModel(pretrained_path())


def _batch(
    corpus: Path, speakers: tuple[str, ...], config: PrepareConfig, shift: str, first: int
) -> list[dict[str, Any]]:
    """Statistics of `BATCH` streams of a kind."""
    kind = NORMAL | SHIFTS.get(shift, {})
    taking = config.turn_taking.model_copy(update=kind["turns"])
    config = config.model_copy(update={"conversation_s": TALK_S, "turn_taking": taking})
    talks, conditions = [], []
    for number in range(first, first + BATCH):
        rng = np.random.default_rng((len(shift), sum(map(ord, shift)), number))
        chosen = rng.permutation(np.array(speakers))
        chosen = [name for name in chosen.tolist() if _segments(corpus, name)][
            : int(rng.integers(*kind["speakers"], endpoint=True))
        ]
        condition = str(rng.choice(kind["conditions"]))
        plan = ConversationPlan(
            f"{shift}-{number}", "test", condition, tuple(chosen), (3, len(shift), sum(map(ord, shift)), number)
        )
        samples = simulate(plan, {name: _segments(corpus, name) for name in chosen}, config).samples_N
        talks.append(kind["change"](rng, samples))
        conditions.append(condition)
    rows = stream_statistics(talks, _model(), latency_s=1.04, max_batch=BATCH)
    return [row.as_dict() | {"condition": condition} for row, condition in zip(rows, conditions, strict=True)]


def streams_of(corpus: Path, shift: str, count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Statistics of streams of held-out voices, with a shift or ("") without; the same numbers give the same streams."""
    config = load_params().prepare
    splits = split_speakers(_utterances(corpus), config)
    speakers = tuple(splits["dev"] + splits["test"])
    jobs = [(corpus, speakers, config, shift, start) for start in range(first, first + count, BATCH)]
    return [row for rows in in_parallel(_batch, jobs, few=1) for row in rows][:count]


def measure(corpus: Path) -> dict[str, Any]:
    """All shifts, and draws without one."""
    config = load_params().drift
    reference = streams_of(corpus, "", NUM_REFERENCE)
    clean = streams_of(corpus, "", NUM_CLEAN, first=NUM_REFERENCE)
    table = [
        _raised(config, reference, shift, streams_of(corpus, shift, NUM_SHIFTED)) for shift in list(SHIFTS)[:NUM_SHIFTS]
    ]
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(NUM_DRAWS):
        drawn = [clean[index] for index in rng.permutation(len(clean))[:NUM_SHIFTED]]
        false += drift(config, reference, drawn, None, EvidentlyComparer())["drifted"]
    return {"shifts": table, "draws": NUM_DRAWS, "false_alarms": false}


def _raised(
    config: DriftConfig, reference: list[dict[str, Any]], shift: str, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    at = None
    verdict: dict[str, Any] = {}
    for look in LOOKS:
        verdict = drift(config, reference, rows[:look], None, EvidentlyComparer())
        if verdict["drifted"]:
            at = look
            break
    return {
        "shift": shift,
        "raised_at_streams": at,
        "slice": verdict["slice"] and verdict["slice"]["name"],
        "words": (verdict["slice"] or {"words": []})["words"][:3],
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=None, help="by default prepare.corpus")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.corpus or Path(load_params().prepare.corpus))
    for row in found["shifts"]:
        print(f"{row['shift']:28} {row['raised_at_streams'] or 'NOT RAISED':>10} streams   {'; '.join(row['words'])}")
    print(f"without a shift: {found['false_alarms']} alarms in {found['draws']} draws of {NUM_SHIFTED} streams")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
