"""What Prometheus saw of the variants that servers hold."""

import time
from typing import Any

from voiceflow.errors import ConfigError, PlatformError
from voiceflow.stages.rollout import Seen, Window

TIMEOUT_S = 10.0
DOWN_S = 20.0
"""So long a server has to have no use of the challenger."""
MIN_SCRAPES = 2
"""In a look; fewer say nothing of what came in it."""
MIN_COMPARED_S, MAX_COMPARED_S = 10.0, 300.0
"""Shadowed speech by which two models can be compared; and so far back at most it is looked for."""


class Prometheus:
    """A server that scrapes the streaming servers.

    Args:
        url: ``http://host:9090``.
        selector: Which series, as in PromQL: ``namespace="voiceflow-production"``; all by default.
    """

    def __init__(self, url: str, *, selector: str = "") -> None:
        self.url = url.rstrip("/")
        self._selector = selector
        self._compared_at_s: float | None = None

    def window(self, seconds: float, *, late_ms: float) -> Window | None:
        """What was seen of champion and challenger in the last seconds; None where no server holds a challenger.

        Raises:
            PlatformError: It does not answer, or scrapes too rarely for so short a time.
            ConfigError: Answers are not counted by `late_ms`.
        """
        span = f"[{seconds:g}s]"
        open_streams = self._by_variant(f"avg_over_time(voiceflow_active_streams{{}}{span})")
        is_down = self._is_down()
        if not is_down and not self._by_variant("voiceflow_models_held{}").get("challenger"):
            return None
        scrapes = self._by_variant(f"count_over_time(voiceflow_active_streams{{}}{span})", by="min")
        if min(scrapes.values(), default=0.0) < MIN_SCRAPES:
            raise PlatformError(
                f"{self.url} scrapes too rarely: expected {MIN_SCRAPES} times or more in rollout.look_s = {seconds:g} s"
            )
        bound = str(late_ms / 1000.0)
        in_time = self._by_variant(f'increase(voiceflow_emission_latency_seconds_bucket{{le="{bound}"}}{span})')
        if not in_time:
            raise ConfigError(
                f"rollout.late_ms: expected a bound of voiceflow_emission_latency_seconds, got {late_ms:g}"
            )
        answers = self._increase("voiceflow_emission_latency_seconds_count", span)
        lost = self._increase("voiceflow_lost_streams_total", span)
        flips = self._increase("voiceflow_label_flips_total", span)
        audio_s = self._increase("voiceflow_audio_seconds_total", span)

        def seen(variant: str) -> Seen:
            held = open_streams.get(variant, 0.0) + lost.get(variant, 0.0)
            told = answers.get(variant, 0.0)
            minutes = audio_s.get(variant, 0.0) / 60.0
            return Seen(
                streams=held,
                errors=lost.get(variant, 0.0) / held if held else 0.0,
                # Audio without any answer is as late as can be.
                late=1.0 - in_time.get(variant, 0.0) / told if told else float(minutes > 0.0),
                flips_per_minute=flips.get(variant, 0.0) / minutes if minutes else 0.0,
            )

        return Window(seen("champion"), seen("challenger"), self._cross_der(seconds), is_down=is_down)

    def _cross_der(self, seconds: float) -> float | None:
        """Over what was compared since it was told last; None until that is enough."""
        now_s = time.monotonic()
        begin_s = self._compared_at_s or now_s - seconds
        span = f"[{min(MAX_COMPARED_S, now_s - begin_s):.0f}s]"
        compared_s = self._increase("voiceflow_shadow_speech_seconds_total", span).get("challenger", 0.0)
        if compared_s < MIN_COMPARED_S:
            self._compared_at_s = begin_s
            return None
        self._compared_at_s = now_s
        different_s = self._increase("voiceflow_shadow_error_seconds_total", span).get("challenger", 0.0)
        return min(1.0, different_s / compared_s)

    def _is_down(self) -> bool:
        # A server that could not load it tries again meanwhile.
        return (
            self._by_variant(f"max_over_time(voiceflow_variant_up{{}}[{DOWN_S:g}s])", by="min").get("challenger", 1.0)
            < 1.0
        )

    def _increase(self, name: str, span: str) -> dict[str, float]:
        return self._by_variant(f"increase({name}{{}}{span})")

    def _by_variant(self, query: str, *, by: str = "sum") -> dict[str, float]:
        # Empty braces are where the selector goes.
        selected = query.replace("{}", f"{{{self._selector}}}").replace('"}', f'",{self._selector}}}')
        rows = self.query(f"{by} by (variant) ({selected})")
        return {row["metric"].get("variant", ""): float(row["value"][1]) for row in rows}

    def query(self, query: str) -> list[dict[str, Any]]:
        """Rows of an instant query.

        Raises:
            PlatformError: It does not answer, or not as Prometheus does.
        """
        import httpx

        try:
            reply = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=TIMEOUT_S)
            if reply.status_code != 200:
                raise PlatformError(f"{self.url} refused a query ({reply.status_code}): {reply.text[:300]}")
            content = reply.json()
        except (httpx.HTTPError, ValueError) as err:
            raise PlatformError(f"expected a Prometheus server at {self.url}: {err}") from err
        rows: list[dict[str, Any]] = content["data"]["result"]
        return rows
