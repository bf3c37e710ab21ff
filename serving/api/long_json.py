"""JSON with a long list of numbers in it, read in pieces, so that no other stream waits for it."""

import asyncio
import re
from typing import Any

import numpy as np
import orjson

from voiceflow.audio import FloatArray

PIECE_CHARS = 64 * 1024
"""Read at once: less than a millisecond's work."""


async def read_json(text: str, numbers: str) -> Any:
    """What `orjson.loads` gives, where a long list is an array already.

    Args:
        text: JSON.
        numbers: Name of the member that may be a long list of numbers.

    Returns:
        The value; of a long object, its member `numbers` is an array of shape (N,), float32.

    Raises:
        ValueError: Not JSON, or long without that list.
    """
    if len(text) <= PIECE_CHARS:
        return orjson.loads(text)
    found = re.search(rf'"{numbers}"\s*:\s*\[', text)
    end = -1 if found is None else text.find("]", found.end())
    if found is None or end < 0 or len(text) - (end - found.end()) > PIECE_CHARS:
        raise ValueError(f"expected nothing long but a list of numbers named {numbers}")
    pieces: list[FloatArray] = []
    start = found.end()
    while start < end:
        stop = text.rfind(",", start, start + PIECE_CHARS) if end - start > PIECE_CHARS else end
        if stop < 0:
            raise ValueError("expected numbers")
        pieces.append(np.asarray(orjson.loads(f"[{text[start:stop]}]"), np.float32))
        start = stop + 1
        await asyncio.sleep(0)
    value = orjson.loads(text[: found.end()] + text[end:])
    value[numbers] = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return value
