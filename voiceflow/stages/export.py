"""export: the trained network as fp32, int8 and fp16 files that meet the contract, with parity and int8 gates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voiceflow.audio import file_digest
from voiceflow.config import EvaluateConfig, ExportConfig
from voiceflow.contract import REFERENCE_FILE
from voiceflow.export import (
    convert_fp16,
    export_fp32,
    make_metadata,
    parity_difference,
    quantise_int8,
    set_metadata,
    stream_activities,
)
from voiceflow.features import step_features
from voiceflow.gates import int8_gate, parity_gate, size_gate
from voiceflow.metrics import by_slice, summarise
from voiceflow.runtime import StepModel
from voiceflow.stages.dataset import read_recordings, read_samples
from voiceflow.stages.scoring import SplitScores, held_out, slices_of, table, write_reference
from voiceflow.stages.train import load_trained
from voiceflow.timebase import lookahead_steps

FILES = {"fp32": "diarizer.fp32.onnx", "int8": "diarizer.int8.onnx", "fp16": "diarizer.fp16.onnx"}
PARITY_STREAMS = 4
SAMPLE_STREAMS = 32
"""Recordings of dev by which the int8 file's steps are chosen."""


def export(
    config: ExportConfig,
    evaluation: EvaluateConfig,
    trained: Path,
    dataset: Path,
    output: Path,
    *,
    version: str,
    data_revision: str,
    git_commit: str,
    run_id: str,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write the three files and export.json with digests, figures and the gates' verdicts.

    Args:
        config: Opset and gates.
        evaluation: Latency at which DER is measured.
        trained: Output of `train`.
        dataset: Output of `prepare`: parity and DER are measured on its test split, int8 steps chosen by dev.
        output: Folder of the files.
        version: Semantic version of the model.
        data_revision: DVC revision of the data it was trained on.
        git_commit: Commit of the code that trained it.
        run_id: MLflow run that trained it, or an empty string.
        progress: Called as work goes on.

    Returns:
        The content of export.json.
    """
    net, decision = load_trained(trained)
    metadata = make_metadata(
        net, version=version, decision=decision, data_revision=data_revision, git_commit=git_commit, run_id=run_id
    )
    paths = {precision: output / name for precision, name in FILES.items()}
    progress("export fp32", 0, 5)
    export_fp32(net, paths["fp32"], metadata=metadata, opset=config.opset)
    progress("quantise int8 and fp16", 1, 5)
    sample = (read_recordings(dataset, "dev") or held_out(dataset))[:SAMPLE_STREAMS]
    quantise_int8(paths["fp32"], paths["int8"], [step_features(read_samples(dataset, row)) for row in sample])
    convert_fp16(paths["fp32"], paths["fp16"])
    progress("parity of whole streams", 2, 5)
    recordings = held_out(dataset)
    lookahead = lookahead_steps(evaluation.latency_s)
    streams = [step_features(read_samples(dataset, recording)) for recording in recordings[:PARITY_STREAMS]]
    models = {precision: StepModel(paths[precision], served=precision == "int8") for precision in ("fp32", "int8")}
    difference = parity_difference(net, models["fp32"], streams, lookahead_steps=lookahead)
    int8_difference = max(
        float(
            np.abs(
                stream_activities(models["int8"], stream, lookahead_steps=lookahead)
                - stream_activities(models["fp32"], stream, lookahead_steps=lookahead)
            ).max()
        )
        for stream in streams
    )
    figures: dict[str, dict[str, dict[str, float]]] = {}
    recorded = read_recordings(dataset, "recorded")
    for number, (precision, model) in enumerate(models.items()):
        progress(f"DER of {precision}", 3 + number, 5)
        scored = SplitScores(dataset, recordings, model, latency_s=evaluation.latency_s)
        figures[precision] = {"overall": summarise(scored.scores.values())}
        figures[precision] |= by_slice(scored.scores, slices_of(recordings))
        if recorded:
            real = SplitScores(dataset, recorded, model, latency_s=evaluation.latency_s)
            figures[precision]["recorded"] = summarise(real.scores.values())
    # What live streams are compared with, once this model serves them.
    write_reference(output / REFERENCE_FILE, dataset, models["int8"], latency_s=evaluation.latency_s)
    for precision, path in paths.items():
        set_metadata(path, der=table(figures["int8" if precision == "int8" else "fp32"]))
    # A slice of few recordings, or of real ones that are not the test set, says too little to refuse by.
    judged = {
        name: row
        for name, row in figures["fp32"].items()
        if name == "overall" or (row["recordings"] >= evaluation.min_slice_recordings and name != "recorded")
    }
    gates = [
        parity_gate(difference, config),
        int8_gate(judged, figures["int8"], config),
        size_gate(paths["int8"].stat().st_size / 1e6, metadata.state_dims * 4 / 1024, config),
    ]
    summary = {
        "files": {
            precision: {"name": path.name, "digest": file_digest(path), "size_mb": round(path.stat().st_size / 1e6, 3)}
            for precision, path in paths.items()
        },
        "parity_max_difference": difference,
        "int8_max_activity_difference": int8_difference,
        "der": {precision: table(rows) for precision, rows in figures.items()},
        "gates": [gate.as_dict() for gate in gates],
    }
    progress("done", 5, 5)
    (output / "export.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
