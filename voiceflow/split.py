"""Which model new streams get: what a rollout wants, and every server reads.

A split is one JSON value in a file or in Redis; servers look at it each second (`VOICEFLOW_SPLIT`).
"""

import hashlib
import zlib
from typing import Self

from pydantic import Field, model_validator

from voiceflow.config import Section


class Served(Section):
    """A model that servers hold."""

    uri: str = Field(min_length=1)
    """As for `voiceflow serve --model`, or ``grpc://host:port`` of a predictor that holds it."""
    digest: str = ""
    """SHA-256 that its file must have."""
    version: str = ""
    """Registered version, or an empty string."""

    @property
    def key(self) -> str:
        """Tells it from others: the digest, or where it is."""
        return self.digest or self.uri


class Split(Section):
    """Who answers new streams."""

    champion: Served
    challenger: Served | None = None
    weight: float = Field(default=0.0, ge=0, le=1)
    """Share of new streams that the challenger answers."""
    shadow: float = Field(default=0.0, ge=0, le=1)
    """Share of the champion's new streams whose audio the challenger hears as well; its answers are compared only."""
    withdrawn: list[str] = Field(default_factory=list)
    """Keys of models that must not answer any more: the champion takes their streams over."""

    @property
    def revision(self) -> int:
        """A number that names it, exact as a float."""
        return zlib.crc32(self.model_dump_json().encode())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.champion.key in self.withdrawn:
            raise ValueError("the champion is among the withdrawn models")
        if self.challenger is None and (self.weight or self.shadow):
            raise ValueError("a weight, or a share of shadowed streams, without a challenger")
        if self.challenger is not None and self.challenger.key == self.champion.key:
            raise ValueError("champion and challenger are the same model")
        return self


def share_of(stream_id: str, purpose: str) -> float:
    """Where a stream lies in [0, 1), the same wherever it is asked; evenly spread, and anew for each purpose."""
    digest = hashlib.blake2b(f"{purpose}\0{stream_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64
