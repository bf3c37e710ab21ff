"""Prometheus metrics: the reference system's names, and ours."""

from prometheus_client import Counter, Gauge, Histogram

_INFERENCE_LATENCY = Histogram(
    "inference_latency_seconds",
    "Time of one batched model step.",
    ["model_version", "variant"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0),
)
_INFERENCE_REQUESTS = Counter("inference_requests_total", "Batched model steps.", ["model_version", "variant"])
_INFERENCE_ERRORS = Counter("inference_errors_total", "Steps or requests that failed.", ["model_version", "variant"])
_CONNECTIONS = Gauge("websocket_connections_active", "Open WebSocket streams.", ["model_version", "variant"])
BATCH_SIZE = Histogram("voiceflow_batch_size", "Streams in one step.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
AUDIO_SECONDS = Counter("voiceflow_audio_seconds_total", "Audio received on streams, in seconds.")

INFERENCE_LATENCY = _INFERENCE_LATENCY.labels("unknown", "champion")
INFERENCE_REQUESTS = _INFERENCE_REQUESTS.labels("unknown", "champion")
INFERENCE_ERRORS = _INFERENCE_ERRORS.labels("unknown", "champion")
CONNECTIONS = _CONNECTIONS.labels("unknown", "champion")


def set_model(version: str, variant: str) -> None:
    """Label the metrics with the model that is served."""
    global INFERENCE_LATENCY, INFERENCE_REQUESTS, INFERENCE_ERRORS, CONNECTIONS
    for metric in (_INFERENCE_LATENCY, _INFERENCE_REQUESTS, _INFERENCE_ERRORS, _CONNECTIONS):
        metric.clear()
    INFERENCE_LATENCY = _INFERENCE_LATENCY.labels(version, variant)
    INFERENCE_REQUESTS = _INFERENCE_REQUESTS.labels(version, variant)
    INFERENCE_ERRORS = _INFERENCE_ERRORS.labels(version, variant)
    CONNECTIONS = _CONNECTIONS.labels(version, variant)
