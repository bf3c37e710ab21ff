"""Where servers read which model new streams get, and a rollout writes it: a file, or Redis."""

import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from voiceflow.errors import ConfigError, PlatformError
from voiceflow.split import Split

SPLIT_VARIABLE = "VOICEFLOW_SPLIT"
TIMEOUT_S = 5.0


class Notes(Protocol):
    """Named texts, each written whole or not at all."""

    address: str

    def get(self, name: str) -> str | None:
        """A text; None if there is none.

        Raises:
            PlatformError: It cannot be read.
        """
        ...

    def put(self, name: str, text: str) -> None:
        """Write a text.

        Raises:
            PlatformError: It cannot be written.
        """
        ...


class FileNotes:
    """`Notes` in files: the first name is the path itself, others have it as a suffix.

    Args:
        address: The path.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, name: str) -> str | None:
        """See `Notes`."""
        try:
            return self._path(name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as err:
            raise PlatformError(f"expected to read {self._path(name)}: {err}") from err

    def put(self, name: str, text: str) -> None:
        """See `Notes`."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        except OSError as err:
            raise PlatformError(f"expected to write {path}: {err}") from err

    def _path(self, name: str) -> Path:
        return Path(self.address + (f".{name}" if name else ""))


class RedisNotes:
    """`Notes` in Redis.

    Args:
        address: ``redis://host:6379/0``.
    """

    def __init__(self, address: str) -> None:
        from redis import Redis

        self.address = address
        self._redis: Any = Redis.from_url(address, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)

    def get(self, name: str) -> str | None:
        """See `Notes`."""
        from redis.exceptions import RedisError

        try:
            value = self._redis.get(self._key(name))
        except (RedisError, OSError) as err:
            raise PlatformError(f"the split cannot be read from Redis: {err}") from err
        return None if value is None else str(value, "utf-8")

    def put(self, name: str, text: str) -> None:
        """See `Notes`."""
        from redis.exceptions import RedisError

        try:
            self._redis.set(self._key(name), text)
        except (RedisError, OSError) as err:
            raise PlatformError(f"the split cannot be written to Redis: {err}") from err

    def _key(self, name: str) -> str:
        return "voiceflow:split" + (f":{name}" if name else "")


def notes_at(address: str) -> Notes:
    """Notes in Redis for ``redis://`` addresses, in files beside a path for all others."""
    return RedisNotes(address) if address.startswith(("redis://", "rediss://")) else FileNotes(address)


def read_split(notes: Notes) -> Split | None:
    """The split; None where nobody has written one.

    Raises:
        ConfigError: What is written there is none.
        PlatformError: It cannot be read.
    """
    text = notes.get("")
    if text is None:
        return None
    try:
        return Split.model_validate_json(text)
    except ValidationError as err:
        fault = err.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(f"{notes.address}: expected a split of models, {where}: {fault['msg']}") from err


def write_split(notes: Notes, split: Split) -> None:
    """Let servers act on a split from the next second on."""
    notes.put("", split.model_dump_json(indent=2) + "\n")
