"""Plain HTTP beside KServe's own: /infer, /health, /ready, /v1/model, and tickets for live streams."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.api import live
from serving.api.access import credential
from serving.api.long_json import read_json
from serving.api.service import Service
from serving.errors import http_status, told, wire_code
from serving.transformer import metrics
from voiceflow.audio import check_finite, load_audio, resample
from voiceflow.audio import check_rate as check_sample_rate
from voiceflow.errors import StreamError, VoiceflowError
from voiceflow.streaming.messages import shown
from voiceflow.streaming.session import StreamSettings
from voiceflow.turns import to_json

logger = logging.getLogger("voiceflow.http")
MAX_INFER_BYTES = 100 * 1024 * 1024
MAX_INFER_S = 1800.0
SMALL_BYTES = 128 * 1024
"""Of files that are decoded at once: a thread costs more."""
CONSOLE = Path(__file__).parent.parent / "console" / "index.html"
Handler = Callable[[Request], Awaitable[Response]]


class HttpApi:
    """Routes over one service.

    Args:
        service: The process's streams.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def routes(self) -> list[BaseRoute]:
        """For an ASGI application's router."""
        return [
            Route("/infer", self._guarded(self.infer), methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/console", self.console),
            Route("/v1/model", self.model),
            Route("/v1/live", self._guarded(self.live), methods=["POST"]),
        ]

    async def health(self, request: Request) -> Response:
        """Whether the process lives."""
        return JSONResponse({"status": "ok", "streams": self.service.num_streams, "model": self.service.model})

    async def ready(self, request: Request) -> Response:
        """Whether a new stream would be taken."""
        service = self.service
        free = max(0, service.capacity - service.num_streams)
        is_ready = not (service.is_draining or service.is_full)
        body = {
            "ready": is_ready,
            "free_streams": free,
            "load": round(service.variants.load, 3),
            "draining": service.is_draining,
        }
        return JSONResponse(body, status_code=200 if is_ready else 503)

    async def console(self, request: Request) -> Response:
        """A page that streams a file or the microphone and shows the turns."""
        return FileResponse(CONSOLE, media_type="text/html")

    async def metrics(self, request: Request) -> Response:
        """For Prometheus: KServe's metrics and ours."""
        body, content_type = metrics.exposition()
        return Response(body, headers={"content-type": content_type})

    async def model(self, request: Request) -> Response:
        """What answers, and where it comes from."""
        champion = self.service.variants.champion
        stated = None if champion.provenance is None else champion.provenance.model_dump()
        body = {
            **champion.model,
            "metadata": champion.engine.metadata.model_dump(),
            "provenance": stated,
            "variants": self.service.variants.describe(),
        }
        return JSONResponse(body)

    async def live(self, request: Request) -> Response:
        """A URL for one live stream: pyannoteAI's `POST /v1/live`; {"encoding": "pcm_s16le"} for 16-bit audio."""
        await self._enter(request)
        body = await request.body()
        try:
            wishes = orjson.loads(body) if body else {}
            encoding = wishes.get("encoding", "pcm_f32le")
        except (ValueError, AttributeError) as err:
            raise StreamError("bad_json", "expected a JSON object, or nothing") from err
        if encoding not in live.ENCODINGS:
            raise StreamError("bad_encoding", f"expected encoding {list(live.ENCODINGS)}, got {shown(encoding)}")
        self.service.admit()
        ticket_id, ticket = self.service.make_ticket()
        scheme = "wss" if request.headers.get("x-forwarded-proto", request.url.scheme) == "https" else "ws"
        query = urlencode({"token": ticket} | ({"encoding": encoding} if "encoding" in wishes else {}))
        return JSONResponse({"id": ticket_id, "url": f"{scheme}://{request.headers['host']}{live.PATH}?{query}"})

    async def infer(self, request: Request) -> Response:
        """Turns of a short recording: JSON {"audio": [floats], "sample_rate_hz": 16000}, or the bytes of a file."""
        await self._enter(request)
        samples_N = await _infer_audio(request)
        stream = self.service.open(StreamSettings("pcm_f32le", latency_s=self.service.config.latency_s))
        try:
            stream.session.receive_samples(samples_N)
            stream.session.close()
            await stream.settle()
            return JSONResponse(to_json(stream.session.turns, model=self.service.model))
        finally:
            stream.leave()

    async def _enter(self, request: Request) -> None:
        shown = credential(request.headers, request.query_params)
        await self.service.enter(self.service.access.check(shown))

    def _guarded(self, handler: Handler) -> Handler:
        """Answer with the error's code, status and words instead of raising it."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as err:
                if not isinstance(err, VoiceflowError):
                    logger.exception("%s failed", request.url.path)
                self.service.variants.champion.engine.metrics.errors.inc()
                retry_after_s = getattr(err, "retry_after_s", None)
                headers = {} if retry_after_s is None else {"retry-after": f"{retry_after_s:.0f}"}
                body = {"error": {"code": wire_code(err), "message": told(err)}}
                return JSONResponse(body, status_code=http_status(err), headers=headers)

        return answer


async def _infer_audio(request: Request) -> np.ndarray:
    too_large = StreamError(
        "too_large", f"expected at most {MAX_INFER_BYTES // 2**20} MiB; stream longer audio to /v1/stream"
    )
    length = request.headers.get("content-length") or "0"
    if length.isdigit() and int(length) > MAX_INFER_BYTES:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_INFER_BYTES:
            raise too_large
    body = b"".join(parts)
    if "json" not in request.headers.get("content-type", ""):
        if len(body) <= SMALL_BYTES:
            samples_N = load_audio(body, name="body")
        else:
            samples_N = await asyncio.to_thread(load_audio, body, name="body")
    else:
        try:
            value = await read_json(body.decode(), "audio")
            samples_N = np.asarray(value["audio"], np.float32)
            rate_hz = value.get("sample_rate_hz", 16_000)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as err:
            raise StreamError("bad_json", 'expected {"audio": [floats], "sample_rate_hz": 16000}') from err
        if samples_N.ndim != 1 or len(samples_N) == 0 or not isinstance(rate_hz, int | float):
            raise StreamError("bad_message", f"expected a list of at least one float, got shape {samples_N.shape}")
        samples_N = resample(check_finite(samples_N, "audio"), check_sample_rate(rate_hz))
    if len(samples_N) / 16_000 > MAX_INFER_S:
        raise StreamError(
            "too_large",
            f"expected at most {MAX_INFER_S:g} s, got {len(samples_N) / 16_000:.0f} s; stream it to /v1/stream",
        )
    return samples_N
