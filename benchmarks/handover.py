"""`python -m benchmarks.handover`: what it costs a stream that another model goes on with it.

The same model is on both sides, so that all that differs from the undisturbed stream is due to the change.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from voiceflow.metrics import score
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.stages.dataset import read_recordings, read_samples
from voiceflow.streaming.lanes import Lanes
from voiceflow.streaming.session import StreamSettings
from voiceflow.turns import Turn

PACKET = 1600


def turns_of(model: StepModel, samples_N: np.ndarray, *, change_s: float | None, replay_s: float) -> list[Turn]:
    """Turns of a stream that changes lanes once, having heard so much."""
    lanes = Lanes(model.metadata, capacity=2)
    lane = lanes.open(StreamSettings("pcm_f32le"))
    lane.keep_recent(replay_s)

    def score_all() -> None:
        while (batch := lanes.gather(max_batch=2)) is not None:
            lanes.scatter(*model.step(*batch))

    for start in range(0, len(samples_N), PACKET):
        lane.receive_audio(samples_N[start : start + PACKET].astype("<f4").tobytes())
        score_all()
        if change_s is not None and start <= change_s * 16_000 < start + PACKET:
            lanes = Lanes(model.metadata, capacity=2)
            lane = lanes.take_over(lane.carried())
    lane.close()
    score_all()
    return lane.turns


def main() -> None:
    """Print the figures of each length that is heard again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, default=Path("data/prepared"))
    parser.add_argument("--recordings", type=int, default=12)
    parser.add_argument("--replay-s", type=float, nargs="+", default=[4.0, 8.0, 15.0])
    arguments = parser.parse_args()
    model = StepModel(pretrained_path())
    rows = read_recordings(arguments.dataset, "test")[: arguments.recordings]
    audio = [read_samples(arguments.dataset, row)[: 60 * 16_000] for row in rows]
    whole = [turns_of(model, samples_N, change_s=None, replay_s=1.0) for samples_N in audio]
    for replay_s in arguments.replay_s:
        ders, same = [], []
        for samples_N, reference in zip(audio, whole, strict=True):
            length_s = len(samples_N) / 16_000
            turns = turns_of(model, samples_N, change_s=length_s / 2, replay_s=replay_s)
            ders.append(score(reference, turns, duration_s=length_s).der)
            same.append(_same_label_s(reference, turns) / sum(turn.duration_s for turn in reference))
        figures = {
            "replay_s": replay_s,
            "der": round(float(np.mean(ders)), 3),
            "same_label": round(float(np.mean(same)), 3),
        }
        print(json.dumps({**figures, "conversations": len(audio)}), flush=True)


def _same_label_s(reference: list[Turn], turns: list[Turn]) -> float:
    together = (
        min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
        for one in reference
        for other in turns
        if one.speaker == other.speaker
    )
    return sum(max(0.0, seconds) for seconds in together)


if __name__ == "__main__":
    main()
