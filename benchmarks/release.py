"""`python -m benchmarks.release files|card|sample`: put the trained and exported model into the package, with its card.

`files` takes .voiceflow/models/{trained,exported} as `make train` leaves them and measures the rates the card
states; then `make acceptance PART=model`; then `card` writes every figure from docs/results/model.json. `sample` makes
the conversation of espeak-ng voices that is streamed where there is no other.
"""

import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.model_checks import Voices, false_alarms, lone_voices
from voiceflow.adapters.data_versions import git_commit
from voiceflow.config import load_params
from voiceflow.contract import read_metadata
from voiceflow.runtime import StepModel, pretrained_path
from voiceflow.simulation.voices import synthesise_corpus
from voiceflow.stages.dataset import read_recordings, read_summary, read_turns
from voiceflow.stages.prepare import prepare
from voiceflow.stages.scoring import SplitScores

MODELS, DATASET = Path(".voiceflow/models"), Path("data/prepared")
PACKAGE, RESULTS = Path("voiceflow/pretrained"), Path("docs/results/model.json")


def files() -> None:
    """Copy weights, model and thresholds; add the run to lineage.json; measure rates.json."""
    shutil.copyfile(MODELS / "exported" / "diarizer.int8.onnx", PACKAGE / "diarizer.onnx")
    shutil.copyfile("params.yaml", PACKAGE / "params.yaml")
    for name in ("model.json", "decision.json"):
        shutil.copyfile(MODELS / "trained" / name, PACKAGE / name)
    weights = torch.load(MODELS / "trained" / "weights.pt", weights_only=True)
    torch.save({name: value.half() for name, value in weights.items()}, PACKAGE / "weights.pt")
    lineage = json.loads((PACKAGE / "lineage.json").read_text(encoding="utf-8"))
    lineage.append(last_run())
    (PACKAGE / "lineage.json").write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")
    (PACKAGE / "rates.json").write_text(json.dumps(rates(), indent=2) + "\n", encoding="utf-8")


def last_run() -> dict[str, Any]:
    """What the card says of the run that made these weights."""
    trained = json.loads((MODELS / "trained" / "train.json").read_text(encoding="utf-8"))
    data = read_summary(DATASET)
    splits: Any = data["splits"]
    with (MODELS / "trained" / "curve.csv").open(encoding="utf-8") as file:
        curve = [[int(row["step"]), float(row["dev_der"])] for row in csv.DictReader(file) if row["dev_der"]]
    note = MODELS / "trained" / "note.md"
    return {
        "commit": git_commit(),
        "command": "voiceflow stage train --profile full",
        "data": f"{data['revision']}: {splits['train']['recordings']} conversations, {splits['train']['hours']:.1f} h",
        "init_from": trained["init_from"],
        "seed": trained["seed"],
        "steps": trained["steps"],
        "minutes": trained["training_minutes"],
        "dev_der": curve,
        "note": note.read_text(encoding="utf-8").strip() if note.is_file() else "",
    }


def rates() -> dict[str, float]:
    """Speakers invented a minute, with room for one more in what was measured; other sounds than acceptance's."""
    torch.set_num_threads(1)
    params = load_params(Path("params.yaml"))
    model = StepModel(pretrained_path())
    voices = Voices(params.prepare, Path(params.prepare.corpus))
    stated = {}
    for kind, row in (
        false_alarms(model, count=20, seed=12) | lone_voices(model, voices, count=8, minutes=10.0)
    ).items():
        rate = row.get("speakers_per_min", row.get("invented_speakers_per_min", 0.0))
        stated[kind] = round(rate + 1.0 / row["minutes"], 3)
    return stated


SAMPLE_S, MIN_TURNS = 24.0, 8


def sample() -> None:
    """Two espeak-ng voices in a room: of forty such conversations the one that the shipped model hears best."""
    config = load_params(Path("params.yaml")).prepare
    counts = config.conversations.model_copy(update={"train": 1, "dev": 1, "test": 40})
    changes = {"conversations": counts, "conversation_s": SAMPLE_S, "num_speakers_weights": [0.0, 1.0]}
    with tempfile.TemporaryDirectory() as scratch:
        corpus, dataset = Path(scratch) / "corpus", Path(scratch) / "prepared"
        synthesise_corpus(corpus, num_speakers=24, sentences_each=8, seed=20)
        config = config.model_copy(update={**changes, "recorded": None, "heldout_fraction": 0.4})
        prepare(config, dataset, corpus=corpus, revision="sample")
        talks = [one for one in read_recordings(dataset, "test") if one.condition == "room"]
        talks = [one for one in talks if len(read_turns(dataset, one)) >= MIN_TURNS]
        scored = SplitScores(dataset, talks, StepModel(pretrained_path()), latency_s=1.04).scores
        best = min(talks, key=lambda one: scored[one.name].der)
        shutil.copyfile(dataset / best.audio, PACKAGE / "sample.flac")
        turns = (dataset / best.rttm).read_text(encoding="utf-8").replace(f" {best.name} ", " sample ")
    (PACKAGE / "sample.rttm").write_text(turns, encoding="utf-8")


def card() -> str:
    """The model card, every figure from a report."""
    metadata = read_metadata(PACKAGE / "diarizer.onnx")
    report = json.loads(RESULTS.read_text(encoding="utf-8"))["items"]
    figures = {name: row["figures"] for name, row in report.items()}
    lineage = json.loads((PACKAGE / "lineage.json").read_text(encoding="utf-8"))
    slices = figures["1 DER by slice at 1.04 s"]
    peers = figures["1 baselines, thresholds tuned on dev"]
    real = figures.get("2 by latency and by file", {})
    lines = [
        f"# {metadata.name} {metadata.version}",
        "",
        (PACKAGE / "about.md").read_text(encoding="utf-8").strip(),
        "",
        "## The file",
        "",
        f"- int8, {figures['4 state <= 64 KiB, file <= 10 MB']['size_mb']} MB; state {metadata.state_dims * 4 / 1024:.1f} KiB a "
        "stream; latency 0.32, 0.64 or 1.04 s, chosen per stream",
        f"- one 80 ms step for 32 streams on one thread: {figures['4 us a stream at batch 32 <= 60']['median']} us a stream",
        f"- thresholds, tuned on dev, in the file: {metadata.decision.model_dump()}",
        f"- exported from commit `{metadata.git_commit}`",
        "",
        "## DER, %",
        "",
        "No collar, overlap scored, labels as first told at 1.04 s; 95 % intervals by bootstrap over recordings;",
        "240 conversations of 60 s of held-out voices. int8; the last column is what int8 costs, in points.",
        "",
        "| slice | DER | 95 % | missed | false alarm | confusion | int8 - fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    cost = figures["4 int8 beside fp32"]
    lines += [
        f"| {name} | {row['der']:.1f} | {row['low']:.1f} to {row['high']:.1f} | {row['missed']:.1f} | "
        f"{row['false_alarm']:.1f} | {row['confusion']:.1f} | {cost.get(name, '')} |"
        for name, row in slices.items()
    ]
    lines += ["", "| latency, s | 2 to 4 speakers | real excerpts |", "|---|---|---|"]
    for latency_s, row in figures["1 DER by latency, 2 to 4 speakers"].items():
        excerpts = f"{real[latency_s]['der']:.1f}" if latency_s in real else ""
        lines.append(f"| {latency_s} | {row['der']:.1f} ({row['low']:.1f} to {row['high']:.1f}) | {excerpts} |")
    lines += [
        "",
        "Beside what PyPI offers, on the same recordings in the same run, thresholds tuned on dev:",
        "",
        "| system | 2 to 4 speakers | real excerpts | CPU s a minute |",
        "|---|---|---|---|",
    ]
    for name, row in peers.items():
        few, recorded = row.get("2 to 4 speakers"), row.get("recorded")
        lines.append(
            f"| {name} | {few['der'] if few else ''} | {recorded['der'] if recorded else ''} | {row['cpu_s_per_min']} |"
        )
    lines += ["", "## What it bears", "", "| | measured |", "|---|---|"]
    lines += [
        f"| {name.split(' ', 1)[1]} | {'holds' if row['passed'] else 'falls short' if row['passed'] is False else ''} "
        f"`{json.dumps(row['figures'])[:200]}` |"
        for name, row in report.items()
        if name[0] in "37" or "voices" in name
    ]
    lines += ["", "## How it was made", ""]
    for number, run in enumerate(lineage, start=1):
        curve = ", ".join(f"{step}: {100 * der:.1f}" for step, der in run["dev_der"])
        lines += [
            f"{number}. `{run['command']}` at commit `{run['commit']}`, from {run['init_from']}, seed {run['seed']}: {run['steps']} steps, "
            f"{run['minutes']:.0f} minutes on one CPU core. Data {run['data']}. {run['note']}",
            f"   Frame DER on dev by step, %: {curve}.",
        ]
    lines += ["", "Every figure is from docs/results/model.json (`make acceptance PART=model`)."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["files"]:
        files()
    elif sys.argv[1:] == ["sample"]:
        sample()
    elif sys.argv[1:] == ["card"]:
        (PACKAGE / "card.md").write_text(card(), encoding="utf-8")
    else:
        sys.exit(f"expected `files`, `card` or `sample`, got {sys.argv[1:]}")
