"""Who may open streams, and how often: API keys and JWTs, given in a header, the query or the subprotocol."""

import hashlib
import hmac
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt

from voiceflow.errors import ConfigError, StreamError

SUBPROTOCOL = "voiceflow"
"""What a browser names beside its key: new WebSocket(url, ["voiceflow", key])."""
API_KEYS, ADMIN_KEYS = "VOICEFLOW_API_KEYS", "VOICEFLOW_ADMIN_KEYS"
WINDOW_S = 60.0
TICKET_S = 300.0
"""So long a ticket is good."""
ALGORITHMS_OF_SECRETS, ALGORITHMS_OF_PEMS = ["HS256", "HS384", "HS512"], ["RS256", "ES256", "EdDSA"]


def credential(headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
    """What a client shows, from wherever it can put it."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token") and value.strip():
        return value.strip()
    offered = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]
    if len(offered) >= 2 and offered[0] == SUBPROTOCOL:
        return offered[1]
    return headers.get("x-api-key") or query.get("token")


@dataclass
class Access:
    """Checks credentials; with neither keys nor a JWT key everybody may come in.

    Args:
        keys: Names of their holders, by the SHA-256 of the key.
        jwt_key: A shared secret, or a public key in PEM.
        audience: What JWTs must be meant for, if anything.
    """

    keys: dict[bytes, str] = field(default_factory=dict)
    jwt_key: str | None = None
    audience: str | None = None
    admins: dict[bytes, str] = field(default_factory=dict)
    """Likewise, of those who may change what is served."""

    @classmethod
    def from_environment(cls) -> "Access":
        """Of `VOICEFLOW_API_KEYS` and `VOICEFLOW_ADMIN_KEYS` (name:key, with commas between, or a file of such lines)
        and `VOICEFLOW_JWT_KEY`.

        Raises:
            ConfigError: An entry that is not name:key.
        """
        jwt_key = _text_or_file("VOICEFLOW_JWT_KEY") or None
        return cls(_keys(API_KEYS), jwt_key, os.environ.get("VOICEFLOW_JWT_AUDIENCE"), _keys(ADMIN_KEYS))

    @property
    def asks(self) -> bool:
        """Whether keys are asked for at all."""
        return bool(self.keys or self.jwt_key)

    def check_admin(self, shown: str | None) -> str:
        """The holder of an admin key.

        Raises:
            StreamError: `not_authorised` without a key, `forbidden` with another.
        """
        if not self.admins:
            raise StreamError("forbidden", f"this is off here; {ADMIN_KEYS} lists keys that may")
        if not shown:
            raise StreamError("not_authorised", "expected an admin key: Authorization: Bearer KEY")
        found = _holder(self.admins, shown)
        if not found:
            raise StreamError("forbidden", "expected an admin key, got another")
        return found

    def check(self, shown: str | None) -> str:
        """The holder of a credential; empty where none is asked for.

        Raises:
            StreamError: `not_authorised`.
        """
        if not self.asks:
            return ""
        if not shown:
            raise StreamError(
                "not_authorised",
                "expected an API key or a JWT: Authorization: Bearer KEY, ?token=KEY, or a subprotocol",
            )
        if found := _holder(self.keys | self.admins, shown):
            return found
        if self.jwt_key and shown.count(".") == 2:
            return self._subject(shown)
        raise StreamError("not_authorised", "the key is not known here")

    def _subject(self, token: str) -> str:
        assert self.jwt_key is not None
        algorithms = ALGORITHMS_OF_PEMS if "BEGIN PUBLIC KEY" in self.jwt_key else ALGORITHMS_OF_SECRETS
        options: Any = {"require": ["exp", "sub"]}
        try:
            claims = jwt.decode(token, self.jwt_key, algorithms=algorithms, audience=self.audience, options=options)
        except jwt.InvalidTokenError as err:
            raise StreamError("not_authorised", f"the JWT is not good here: {err}") from err
        return f"jwt:{claims['sub']}"


def _keys(variable: str) -> dict[bytes, str]:
    keys = {}
    for entry in _text_or_file(variable).replace("\n", ",").split(","):
        if not entry.strip():
            continue
        name, _, key = entry.strip().partition(":")
        if not name or len(key) < 16:
            raise ConfigError(
                f"{variable}: expected name:key with keys of at least 16 characters, commas or lines "
                f"between them; the entry of {name[:20]!r} is not one"
            )
        keys[hashlib.sha256(key.encode()).digest()] = name
    return keys


def _text_or_file(variable: str) -> str:
    text = os.environ.get(variable, "")
    try:
        return Path(text).read_text(encoding="utf-8") if text and Path(text).is_file() else text
    except OSError:  # too long for a path
        return text


def _holder(keys: dict[bytes, str], shown: str) -> str:
    digest = hashlib.sha256(shown.encode()).digest()
    found = ""
    for known, name in keys.items():  # all of them, whichever it is: time tells nothing
        if hmac.compare_digest(known, digest):
            found = name
    return found


class Rates:
    """Counts requests by name over the last minute, in this process."""

    def __init__(self) -> None:
        self._counted: dict[str, deque[float]] = {}

    def count(self, name: str) -> int:
        """How often a name was counted in the last minute, this time included."""
        now_s = time.monotonic()
        times = self._counted.setdefault(name, deque())
        while times and times[0] <= now_s - WINDOW_S:
            times.popleft()
        times.append(now_s)
        if len(self._counted) > 10_000:
            self._counted = {key: kept for key, kept in self._counted.items() if kept[-1] > now_s - WINDOW_S}
        return len(times)


class Tickets:
    """Ids that are good once, and for `TICKET_S`, in this process."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def issue(self, id_: str) -> None:
        """Make an id good; those whose time is over are forgotten."""
        now_s = time.monotonic()
        self._until_s = {known: until_s for known, until_s in self._until_s.items() if until_s > now_s}
        self._until_s[id_] = now_s + TICKET_S

    def use(self, id_: str) -> bool:
        """Whether an id is good; it is not afterwards."""
        return self._until_s.pop(id_, 0.0) > time.monotonic()
