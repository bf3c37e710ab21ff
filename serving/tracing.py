"""OpenTelemetry spans, one a stream; nothing is imported or done unless an exporter is set."""

import os
from typing import Any, Protocol

VARIABLES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span(Protocol):
    """What is used of a span."""

    def add_event(self, name: str, attributes: dict[str, Any] | None = None) -> None:
        """Something happened."""
        ...

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        """What is known."""
        ...

    def end(self) -> None:
        """It is over."""
        ...


class Tracer:
    """Begins spans; those of a tracer without an exporter are None.

    `OTEL_TRACES_EXPORTER` is `otlp` (the default where an endpoint is set), `console` or `none`; the rest are
    OpenTelemetry's own variables.
    """

    def __init__(self, **resource: str) -> None:
        self._tracer: Any = None
        given = [os.environ.get(name) for name in VARIABLES]
        if not any(given) or given[0] == "none":
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

        exporter: Any
        if given[0] == "console":
            exporter = ConsoleSpanExporter()
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        self._provider = TracerProvider(resource=Resource.create({"service.name": "voiceflow", **resource}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("voiceflow.streams")

    def begin(self, name: str, attributes: dict[str, Any]) -> Span | None:
        """A span, or None."""
        if self._tracer is None:
            return None
        span: Span = self._tracer.start_span(name, attributes=attributes)
        return span

    def shut_down(self) -> None:
        """Send what was not sent."""
        if self._tracer is not None:
            self._provider.shutdown()
