"""`python -m benchmarks.release`: put the trained and exported model into the package, with its card.

Takes .voiceflow/models/{trained,exported} and reports/evaluate as `make train` leaves them.
"""

import json
import shutil
from pathlib import Path

import torch

from voiceflow.contract import read_metadata

MODELS, REPORTS, PACKAGE = Path(".voiceflow/models"), Path("reports"), Path("voiceflow/pretrained")


def release() -> None:
    """Copy the files and write card.md."""
    exported = MODELS / "exported" / "diarizer.int8.onnx"
    shutil.copyfile(exported, PACKAGE / "diarizer.onnx")
    shutil.copyfile("params.yaml", PACKAGE / "params.yaml")
    for name in ("model.json", "decision.json"):
        shutil.copyfile(MODELS / "trained" / name, PACKAGE / name)
    weights = torch.load(MODELS / "trained" / "weights.pt", weights_only=True)
    torch.save({name: value.half() for name, value in weights.items()}, PACKAGE / "weights.pt")
    (PACKAGE / "card.md").write_text(card(), encoding="utf-8")


def card() -> str:
    """The model card, every figure from a report."""
    metadata = read_metadata(PACKAGE / "diarizer.onnx")
    trained = json.loads((MODELS / "trained" / "train.json").read_text(encoding="utf-8"))
    export = json.loads((MODELS / "exported" / "export.json").read_text(encoding="utf-8"))
    evaluated = json.loads((REPORTS / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    rows = "".join(
        f"| {name} | {100 * export['der']['fp32'][name]:.1f} | {100 * export['der']['int8'][name]:.1f} |\n"
        for name in export["der"]["fp32"]
    )
    test, lenient = evaluated["test"]["overall"], evaluated["test"]["collar_0.25"]
    note = (
        (MODELS / "trained" / "note.md").read_text(encoding="utf-8")
        if (MODELS / "trained" / "note.md").is_file()
        else ""
    )
    return f"""# {metadata.name} {metadata.version}

A first model: it shows the whole way through and is not yet the model to rely on.

- **Use**: who speaks when, live, up to {metadata.num_slots} voices; English read speech in simulated conversations.
- **Do not use** for real meetings recorded far away or very quietly: on the real excerpts below it hears speech
  where there is none (false alarms are two thirds of the error). Children, other languages and music were not measured.
- A ninth voice is given to the slot most like it. Digital silence is nobody's.
- **Parameters** {trained["num_parameters"]:,}; int8 file {export["files"]["int8"]["size_mb"]} MB;
  state {metadata.state_dims * 4 / 1024:.1f} KiB a stream; latency 0.32, 0.64 or 1.04 s from one file.
- **Training**: {trained["steps"]} optimiser steps, {trained["training_minutes"]} minutes on one CPU core, bf16, seed {trained["seed"]};
  best frame DER on dev {100 * trained["dev_frame_der"]:.1f} % at step {trained["best_step"]}.
- **Data**: revision `{metadata.data_revision}`; commit `{metadata.git_commit}`.
- **Thresholds** (tuned on dev, in the file): {metadata.decision.model_dump()}.

{note}
## DER, %

No collar, overlap scored, streaming at {evaluated["latency_s"]} s latency; {int(test["recordings"])} conversations of 60 s of held-out speakers;
`recorded` is the seven 30 s AMI excerpts, never trained or tuned on.

| slice | fp32 | int8 |
|---|---|---|
{rows}
fp32 on the test split: missed {100 * test["missed"]:.1f}, false alarm {100 * test["false_alarm"]:.1f}, confusion {100 * test["confusion"]:.1f};
JER {100 * test["jer"]:.1f}; with 0.25 s collar per side DER {100 * lenient["der"]:.1f};
speaker count exactly right in {100 * test["speaker_count_accuracy"]:.0f} %; {test["flips_per_minute"]:.1f} label flips a minute.
Largest difference of activity: torch to ONNX fp32 {export["parity_max_difference"]:.1e}, fp32 to int8 {export["int8_max_activity_difference"]:.2f}.

Made by `make train PROFILE=full && python -m benchmarks.release`.
"""


if __name__ == "__main__":
    release()
