"""Prometheus metrics: the reference system's names, and ours."""

import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_MODEL = ("model_version", "variant")
_INFERENCE_LATENCY = Histogram("inference_latency_seconds", "Time of one batched model step.", _MODEL, buckets=_SECONDS)
_INFERENCE_REQUESTS = Counter("inference_requests_total", "Batched model steps.", _MODEL)
_INFERENCE_ERRORS = Counter("inference_errors_total", "Steps or requests that failed.", _MODEL)
_CONNECTIONS = Gauge("websocket_connections_active", "Open WebSocket streams.", _MODEL, multiprocess_mode="livesum")
_EMISSION = Histogram(
    "voiceflow_emission_latency_seconds",
    "From the arrival of the audio that an answer needs to the answer, of some streams in each step.",
    _MODEL,
    buckets=_SECONDS,
)
BATCH_SIZE = Histogram("voiceflow_batch_size", "Streams in one step.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
TICK_SECONDS = Histogram("voiceflow_tick_seconds", "Time of a step with all that goes with it.", buckets=_SECONDS)
_AUDIO_SECONDS = Counter("voiceflow_audio_seconds_total", "Audio received on streams, in seconds.", _MODEL)
_STREAMS = Gauge("voiceflow_active_streams", "Streams that are held.", _MODEL, multiprocess_mode="livesum")
CAPACITY = Gauge("voiceflow_capacity_streams", "Streams that can be held.", multiprocess_mode="livesum")
HEADROOM = Gauge("voiceflow_headroom_streams", "Streams that can be taken in.", multiprocess_mode="livesum")
LOAD = Gauge("voiceflow_load_ratio", "Share of the time in which steps are worked on.", multiprocess_mode="livemax")
REFUSALS = Counter("voiceflow_refusals_total", "Errors told to clients, by code.", ["code"])
RESUMES = Counter("voiceflow_resumes_total", "Streams whose clients came back.")
CPU_SECONDS = Counter("voiceflow_cpu_seconds_total", "CPU time of the server's processes.")
MEMORY = Gauge("voiceflow_memory_bytes", "Resident memory of the server's processes.", multiprocess_mode="livesum")
OBSERVED_STREAMS = Counter("voiceflow_observed_streams_total", "Streams, or stretches, whose statistics were kept.")
OBJECTS = Gauge(
    "voiceflow_stream_objects",
    "Objects of streams in memory, open ones and ended ones.",
    ["kind"],
    multiprocess_mode="livesum",
)
OBJECT_KINDS = ("connection", "talk", "conversation", "stream", "lane")
CHECKPOINTS = Counter("voiceflow_checkpoints_total", "Streams saved to the store.")
_FLIPS = Counter("voiceflow_label_flips_total", "Turns whose speaker turned out to be another one.", _MODEL)

_FAILED_STEPS = Counter("voiceflow_failed_steps_total", "Batched model steps that failed.", _MODEL)
_OPENED = Counter("voiceflow_opened_streams_total", "Streams that were given to a model when they opened.", _MODEL)
_CHANGED = Counter("voiceflow_model_changes_total", "Open streams that were taken from a model and went on.", _MODEL)
_LOST = Counter("voiceflow_lost_streams_total", "Streams that a model lost in a step that failed.", _MODEL)
IS_UP = Gauge(
    "voiceflow_variant_up", "Whether a variant can answer in every process.", ["variant"], multiprocess_mode="livemin"
)
SPLIT = Gauge(
    "voiceflow_split_revision",
    "Names the split that a process acts on: processes that show another number have not seen the same one.",
    multiprocess_mode="liveall",
)
_HELD = Gauge("voiceflow_models_held", "Processes that hold a model.", _MODEL, multiprocess_mode="livesum")
_SHADOWED = Gauge("voiceflow_shadowed_streams", "Streams that a model hears only.", _MODEL, multiprocess_mode="livesum")
_COMPARED = Counter("voiceflow_shadow_speech_seconds_total", "Speech by the champion that both models heard.", _MODEL)
_DIFFERENT = Counter(
    "voiceflow_shadow_error_seconds_total",
    "Missed, false alarm and confusion of a model that hears only, taking the champion for the truth.",
    _MODEL,
)


class ModelMetrics:
    """Metrics of one model in one role.

    Args:
        version: Of the model file.
        variant: champion, challenger, previous or withdrawn.
    """

    def __init__(self, version: str, variant: str) -> None:
        self.step_latency = _INFERENCE_LATENCY.labels(version, variant)
        self.steps = _INFERENCE_REQUESTS.labels(version, variant)
        self.errors = _INFERENCE_ERRORS.labels(version, variant)
        self.failed_steps = _FAILED_STEPS.labels(version, variant)
        self.connections = _CONNECTIONS.labels(version, variant)
        self.emission = _EMISSION.labels(version, variant)
        self.audio_seconds = _AUDIO_SECONDS.labels(version, variant)
        self.streams = _STREAMS.labels(version, variant)
        self.flips = _FLIPS.labels(version, variant)
        self.opened = _OPENED.labels(version, variant)
        self.lost = _LOST.labels(version, variant)
        self.changed = _CHANGED.labels(version, variant)
        self.shadowed = _SHADOWED.labels(version, variant)
        self.held = _HELD.labels(version, variant)
        self.held.set(1)
        self.compared = _COMPARED.labels(version, variant)
        self.different = _DIFFERENT.labels(version, variant)

    def end(self) -> None:
        """The model is not in this role any more."""
        for gauge in (self.streams, self.shadowed, self.held):
            gauge.set(0)


def tell_capacity(num_streams: int, capacity: int, load: float) -> None:
    """What is held in all, what could be, and how busy that is."""
    CAPACITY.set(capacity)
    HEADROOM.set(max(0, capacity - num_streams))
    LOAD.set(load)


def tell_objects(by_kind: Mapping[str, int]) -> None:
    """Objects of streams that are in memory."""
    for kind in OBJECT_KINDS:
        OBJECTS.labels(kind).set(by_kind.get(kind, 0))


def tell_process(before_s: float) -> float:
    """Memory of this process, and its CPU time since it had `before_s` of it; returns what it has now."""
    cpu_s = time.process_time()
    CPU_SECONDS.inc(cpu_s - before_s)
    MEMORY.set(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    return cpu_s


def exposition() -> tuple[bytes, str]:
    """All metrics of this process, or of all workers together where they share a folder; and their content type."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST
