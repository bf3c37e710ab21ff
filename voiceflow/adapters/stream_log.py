"""Where servers leave the statistics of streams, and the drift check finds them: a folder, or Redis.

A line is what `StreamStatistics` holds, when (to the minute), and which model heard it. No id, no key, no address.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from voiceflow.errors import DataError, PlatformError

REDIS_KEY = "voiceflow:stream-statistics"
MOST_LINES = 200_000
DAY_S = 86_400.0
DIGEST_CHARACTERS = 16


class StreamLog(Protocol):
    """Statistics of streams, oldest first."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append."""
        ...

    def last(self, count: int, *, since: float = 0.0, digest: str = "") -> list[dict[str, Any]]:
        """The newest rows, oldest first; of the model of a SHA-256, and since a time, where those are given."""
        ...

    def forget(self, *, before: float) -> None:
        """Delete what is older."""
        ...


def line_of(statistics: Mapping[str, float], *, model: str, digest: str, variant: str, now: float) -> dict[str, Any]:
    """What is kept of a stream."""
    about = {"model": model, "digest": digest[:DIGEST_CHARACTERS], "variant": variant}
    return {"at": int(now // 60 * 60), **about, **statistics}


def is_of(row: Mapping[str, Any], digest: str) -> bool:
    """Whether a row is of the model of a SHA-256; where either is not known it may be."""
    heard_by = str(row.get("digest", ""))
    return not (heard_by and digest) or digest.startswith(heard_by)


class FolderLog:
    """A file a day and process."""

    def __init__(self, folder: Path, *, name: str = "streams") -> None:
        self.folder = folder
        self._name = name

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `StreamLog`.

        Raises:
            PlatformError: The folder cannot be written.
        """
        day = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"{day}.{self._name}.jsonl").open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as err:
            raise PlatformError(f"{self.folder}: cannot be written ({err.strerror})") from err

    def last(self, count: int, *, since: float = 0.0, digest: str = "") -> list[dict[str, Any]]:
        """See `StreamLog`."""
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder}: no statistics of streams; `voiceflow serve --statistics FOLDER` writes them"
            )
        rows = []
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue  # a server is writing it, or died while it did
        rows = [row for row in rows if row["at"] >= since and is_of(row, digest)]
        return sorted(rows, key=lambda row: int(row["at"]))[-count:]

    def forget(self, *, before: float) -> None:
        """See `StreamLog`; a file goes when its whole day is over."""
        for path in self.folder.glob("*.jsonl"):
            day = datetime.strptime(path.name.split(".")[0], "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
            if day + DAY_S < before:
                path.unlink(missing_ok=True)


class RedisLog:
    """A stream in Redis that all servers append to."""

    def __init__(self, url: str) -> None:
        import redis

        self._redis = redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0)
        self._url = url

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `StreamLog`.

        Raises:
            PlatformError: Redis cannot be reached.
        """
        with _asking(self._url):
            pipeline = self._redis.pipeline(transaction=False)
            for row in rows:
                pipeline.xadd(REDIS_KEY, {"row": json.dumps(row)}, maxlen=MOST_LINES, approximate=True)
            pipeline.execute()

    def last(self, count: int, *, since: float = 0.0, digest: str = "") -> list[dict[str, Any]]:
        """See `StreamLog`."""
        with _asking(self._url):
            found: Any = self._redis.xrevrange(REDIS_KEY, count=count if not digest else MOST_LINES)
        rows = [json.loads(fields[b"row"]) for _, fields in reversed(found)]
        return [row for row in rows if row["at"] >= since and is_of(row, digest)][-count:]

    def forget(self, *, before: float) -> None:
        """See `StreamLog`."""
        with _asking(self._url):
            self._redis.xtrim(REDIS_KEY, minid=int(before * 1000))


class _asking:
    """Whatever goes wrong with Redis is one error."""

    def __init__(self, url: str) -> None:
        self._url = url.rpartition("@")[2]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, err: BaseException | None, trace: Any) -> None:
        import redis

        if isinstance(err, redis.RedisError):
            raise PlatformError(f"Redis at {self._url} cannot be asked for statistics of streams: {err}") from err


def stream_log_at(where: str, *, name: str = "streams") -> StreamLog:
    """The log of a folder, or of a redis:// URL."""
    return RedisLog(where) if where.startswith(("redis://", "rediss://")) else FolderLog(Path(where), name=name)
