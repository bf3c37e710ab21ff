"""latency: p50, p95 and p99 of one model step by batch size on the device at hand, and the latency gate."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voiceflow.audio import file_digest
from voiceflow.config import LatencyConfig
from voiceflow.features import STEP_FEATURES
from voiceflow.gates import latency_gate
from voiceflow.runtime import StepModel
from voiceflow.timebase import STEP_S


def device_name(provider: str) -> tuple[str, str]:
    """Key of the device in `latency.max_p99_ms`, and its name for people.

    A T4 is its own device: what another GPU measured says nothing about it.
    """
    if provider == "cpu":
        model = platform.processor() or platform.machine()
        cpuinfo = Path("/proc/cpuinfo")
        if cpuinfo.is_file():
            named = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
            model = named[0] if named else model
        return "cpu", f"{model}, {os.cpu_count()} cores"
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        name = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        name = "unknown GPU"
    return ("t4" if "T4" in name.split() else provider), name


def measure(model: StepModel, batch_size: int, *, repeats: int, warmup: int) -> dict[str, float]:
    """Wall time of one step, as percentiles in ms, and streams that one thread holds in real time."""
    rng = np.random.default_rng(batch_size)
    features = rng.normal(-8.0, 3.0, (batch_size, STEP_FEATURES)).astype(np.float32)
    state = np.zeros((batch_size, model.metadata.state_dims), np.float32)
    lookahead = np.full(batch_size, max(model.metadata.lookahead_steps), np.int64)
    times_ms = []
    for repeat in range(warmup + repeats):
        started = time.perf_counter()
        _, state = model.step(features, state, lookahead)
        if repeat >= warmup:
            times_ms.append(1000.0 * (time.perf_counter() - started))
    p50, p95, p99 = (float(value) for value in np.percentile(times_ms, [50, 95, 99]))
    return {
        "p50_ms": round(p50, 4),
        "p95_ms": round(p95, 4),
        "p99_ms": round(p99, 4),
        "us_per_stream": round(1000.0 * p50 / batch_size, 3),
        "streams_in_real_time": round(1000.0 * STEP_S / p50 * batch_size, 1),
    }


def latency(
    config: LatencyConfig,
    model_path: Path,
    output: Path,
    *,
    provider: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure and judge; writes latency.json.

    Args:
        config: Batch sizes, repeats, bounds.
        model_path: The ONNX file.
        output: Folder of latency.json.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        progress: Called after each batch size.

    Returns:
        The content of latency.json, the gate's verdict and the device's name included.
    """
    model = StepModel(model_path, provider=provider)
    device, name = device_name(provider)
    batches = {}
    for number, batch_size in enumerate(config.batch_sizes, start=1):
        batches[str(batch_size)] = measure(model, batch_size, repeats=config.repeats, warmup=config.warmup)
        progress("time steps", number, len(config.batch_sizes))
    streams = max(row["streams_in_real_time"] for row in batches.values())
    gate = latency_gate(device, {int(batch): row["p99_ms"] for batch, row in batches.items()}, streams, config)
    summary = {
        "device": device,
        "device_name": name,
        "provider": provider,
        "model": model_path.name,
        "digest": file_digest(model_path),
        "precision": model.metadata.precision,
        "batches": batches,
        "streams_per_core": streams,
        "load_average": round(os.getloadavg()[0], 2),
        "gates": [gate.as_dict()],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "latency.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary
