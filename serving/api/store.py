"""Streams kept outside the process, so that another one goes on with them when this one is gone."""

import hashlib
import logging
import os
import secrets
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from voiceflow.errors import ConfigError, PlatformError

logger = logging.getLogger("voiceflow.store")
NONCE_BYTES = 12
CONNECTIONS = 8
TIMEOUT_S, WAIT_S = 5.0, 30.0
"""For an answer, and for a connection that is free."""
# A stream belongs to the server that took it last: one that has lost it does not write over its successor's state.
PUT = """
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[3])
return 1
"""
TAKE = """
local saved = redis.call('GET', KEYS[1])
if saved then redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2]) end
return saved
"""
DROP = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
return 1
"""
OWNER = "VOICEFLOW_STORE_OWNER"
"""Set by the supervisor: workers of one server own streams together, and hand them to each other themselves."""


class Store:
    """Saved streams in Redis, encrypted: who can read Redis can neither read nor change them.

    Args:
        url: ``redis://host:6379/0``.
        key: The token key; all servers that share the store have the same.
        keep_s: How long a stream is kept after it was last saved.
    """

    def __init__(self, url: str, key: bytes, *, keep_s: float) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import ExponentialBackoff

        # All streams of a server may be saved or fetched at once: they take turns.
        pool: Any = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=WAIT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
        )
        self._redis: Any = Redis(connection_pool=pool)
        self._cipher = AESGCM(hashlib.sha256(b"voiceflow stream store\0" + key).digest())
        self._keep_s = max(1, round(keep_s))
        self.owner = os.environ.get(OWNER) or secrets.token_hex(8)
        """Names this server to the others."""
        self._put: Any = self._redis.register_script(PUT)
        self._take: Any = self._redis.register_script(TAKE)
        self._drop: Any = self._redis.register_script(DROP)

    async def check(self) -> None:
        """Raises PlatformError: Redis does not answer."""
        from redis.exceptions import RedisError

        try:
            await self._redis.ping()
        except (RedisError, OSError) as err:
            raise PlatformError(f"expected a Redis server at the store's address; {err}") from err

    async def put(self, session_id: str, saved: bytes) -> bool:
        """Save a stream; False if it belongs to another server by now.

        Args:
            session_id: Its id.
            saved: What `take` is to give back.

        Raises:
            PlatformError: Redis does not answer.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, saved, session_id.encode())
        return bool(await self._asked(self._put(keys=_keys(session_id), args=[self.owner, sealed, self._keep_s])))

    async def is_elsewhere(self, session_id: str) -> bool:
        """Whether a stream belongs to another server, which has taken it since.

        Raises:
            PlatformError: Redis does not answer.
        """
        owner = await self._asked(self._redis.get(_key("owner", session_id)))
        return owner is not None and owner.decode() != self.owner

    async def get(self, session_id: str) -> bytes | None:
        """A saved stream, which stays whose it is; None if there is none.

        Raises:
            PlatformError: Redis does not answer.
        """
        return self._opened(session_id, await self._asked(self._redis.get(_key("stream", session_id))))

    async def take(self, session_id: str) -> bytes | None:
        """A saved stream, which is this server's from now on; None if there is none.

        Raises:
            PlatformError: Redis does not answer.
        """
        sealed = await self._asked(self._take(keys=_keys(session_id), args=[self.owner, self._keep_s]))
        return self._opened(session_id, sealed)

    def _opened(self, session_id: str, sealed: bytes | None) -> bytes | None:
        if sealed is None:
            return None
        try:
            opened: bytes = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], session_id.encode())
        except InvalidTag:
            logger.warning("a stream in the store was saved with another key, or changed")
            return None
        return opened

    async def drop(self, session_id: str) -> None:
        """Forget a stream that is over, unless it belongs to another server by now."""
        await self._asked(self._drop(keys=_keys(session_id), args=[self.owner]))

    async def use_once(self, name: str, *, keep_s: float) -> bool:
        """Whether a name is used for the first time."""
        return bool(await self._asked(self._redis.set(_key("used", name), b"1", nx=True, ex=max(1, round(keep_s)))))

    async def count(self, name: str, *, window_s: float) -> int:
        """How often a name was counted in the window of time that began with its first count, this one included."""
        key = _key("count", name)
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(key, 0, ex=max(1, round(window_s)), nx=True)
        pipe.incr(key)
        _, count = await self._asked(pipe.execute())
        return int(count)

    async def _asked(self, question: Any) -> Any:
        from redis.exceptions import RedisError

        try:
            return await question
        except (RedisError, OSError) as err:
            raise PlatformError(f"the stream store does not answer: {err}") from err


def _keys(session_id: str) -> list[str]:
    return [_key("stream", session_id), _key("owner", session_id)]


def _key(kind: str, name: str) -> str:
    return f"voiceflow:{kind}:{name}"


def store_from_environment(key: bytes, *, keep_s: float) -> Store | None:
    """The store of `VOICEFLOW_STORE`; None where it is not set.

    Raises:
        ConfigError: A store without a `VOICEFLOW_TOKEN_KEY` that outlives this server.
    """
    url = os.environ.get("VOICEFLOW_STORE")
    if not url:
        return None
    if not os.environ.get("VOICEFLOW_TOKEN_KEY"):
        raise ConfigError(
            "expected VOICEFLOW_TOKEN_KEY, the same on all servers, beside VOICEFLOW_STORE: "
            "streams are encrypted with it, and resume tokens signed"
        )
    return Store(url, key, keep_s=keep_s)
