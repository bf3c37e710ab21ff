"""`make curve`: DER against the number of training voices and the hours of conversations, same schedule for each point.

A smaller network than the shipped one is trained from random weights at every point, so that only the data
differs; its DER is not the product's. Held-out and real recordings are the same at every point. Points that are
in docs/results/curve.json already are kept; the file and the picture are written after each.
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.acceptance_model import figures
from benchmarks.items import sized
from voiceflow.adapters.data_versions import git_commit
from voiceflow.config import Params, load_params
from voiceflow.export import make_metadata
from voiceflow.models.step import TorchStep
from voiceflow.stages.dataset import read_recordings, read_summary
from voiceflow.stages.plots import new_figure, save_figure
from voiceflow.stages.prepare import prepare
from voiceflow.stages.scoring import SplitScores
from voiceflow.stages.train import load_trained, train

HOME, RESULTS = Path(".voiceflow/curve"), Path("docs/results")
HELD = sized({"dev": 32, "test": 60}, tiny={"dev": 4, "test": 4})


@dataclass(frozen=True)
class Point:
    """Training data: a share of the voices in so many conversations of a minute."""

    train_share: float
    conversations: int

    @property
    def name(self) -> str:
        """Key in the results."""
        return f"{self.train_share:g} of the voices, {self.conversations} conversations"


VOICES = [Point(share, sized(800, tiny=8)) for share in sized((0.0625, 0.25, 1.0), tiny=(1.0,))]
HOURS = [Point(1.0, conversations) for conversations in sized((50, 200, 800), tiny=(8,))]


def measure(point: Point, params: Params, *, steps: int) -> dict[str, Any]:
    """Make the data, train on it, and score what it never heard."""
    folder = HOME / point.name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    counts = params.prepare.conversations.model_copy(update={"train": point.conversations, **HELD})
    config = params.prepare.model_copy(update={"train_share": point.train_share, "conversations": counts})
    recorded = Path(config.recorded) if config.recorded else None
    dataset = folder / "prepared"
    prepare(config, dataset, corpus=Path(config.corpus), recorded=recorded, revision="curve")
    model = params.model.model_copy(update={"hidden": 160, "num_layers": 2})
    schedule = params.train.model_copy(
        update={
            "steps": steps,
            "max_minutes": None,
            "batch_size": sized(24, tiny=4),
            "init_from": "scratch",
            "long_from": 0.75,
            "teacher_forcing": 0.9,
            "learning_rate": 0.002,
            "warmup_steps": min(200, steps // 6),
            "checkpoint_every_steps": 100,
            "evaluate_every_steps": max(1, steps // 6),
            "patience": 100,
            "num_threads": 0,
        }
    )
    trained = train(schedule, model, params.decision, dataset, folder / "trained")
    net, decision = load_trained(folder / "trained")
    metadata = make_metadata(net, version="0", decision=decision, data_revision="", git_commit="", run_id="")
    splits: Any = read_summary(dataset)["splits"]
    row: dict[str, Any] = {
        **asdict(point),
        "voices": splits["train"]["speakers"],
        "hours": round(point.conversations * config.conversation_s / 3600.0, 2),
        "steps": trained["steps"],
        "minutes": trained["training_minutes"],
        "commit": git_commit(),
    }
    for split in ("test", "recorded"):
        recordings = read_recordings(dataset, split)
        if recordings:
            scored = SplitScores(dataset, recordings, TorchStep(net, metadata), latency_s=1.04)
            row[split] = figures(list(scored.scores.values()))
    shutil.rmtree(folder, ignore_errors=True)
    return row


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """DER over voices, and over hours, with 95 % intervals."""
    figure, axes = new_figure(1, 2)
    for axis, points, key in ((axes[0], VOICES, "voices"), (axes[1], HOURS, "hours")):
        for split, label in (("test", "held-out conversations"), ("recorded", "real excerpts")):
            known = [rows[point.name] for point in points if point.name in rows and split in rows[point.name]]
            axis.errorbar(
                [row[key] for row in known],
                [row[split]["der"] for row in known],
                yerr=[
                    [row[split]["der"] - row[split]["low"] for row in known],
                    [row[split]["high"] - row[split]["der"] for row in known],
                ],
                marker="o",
                capsize=3,
                label=label,
            )
        axis.set(xscale="log", xlabel=f"training {key}", ylabel="DER, %")
        axis.legend()
    save_figure(figure, path)


def main() -> None:
    """Measure every point that is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1200, help="optimiser steps at each point")
    parser.add_argument("--again", action="store_true", help="measure points again that are known")
    arguments = parser.parse_args()
    params = load_params(Path("params.yaml"))
    path = RESULTS / "curve.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not arguments.again else {}
    torch.set_flush_denormal(True)
    for point in dict.fromkeys([*VOICES, *HOURS]):
        if point.name in rows and rows[point.name]["steps"] == arguments.steps:
            continue
        started = time.monotonic()
        rows[point.name] = measure(point, params, steps=arguments.steps)
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        plot(rows, RESULTS / "curve.png")
        print(f"{point.name}: {rows[point.name]}, {(time.monotonic() - started) / 60.0:.1f} min", flush=True)


if __name__ == "__main__":
    main()
