"""How many objects of ended streams are still in memory: none, or a server grows with each stream that ever was.

They refer to each other, and Python's collector of such circles seldom looks at what has lived as long as a stream: so
they are parted where a stream ends.
"""

import weakref
from collections import Counter

_known: dict[int, tuple[str, "weakref.ref[object]"]] = {}


def note(kind: str, thing: object) -> None:
    """Count an object as long as it is in memory.

    Args:
        kind: What it is counted as: ``connection``, ``talk``, ``conversation``, ``stream`` or ``lane``.
        thing: The object.
    """
    key = id(thing)
    _known[key] = kind, weakref.ref(thing, lambda _: _known.pop(key, None))


def count() -> Counter[str]:
    """Objects in memory, by kind."""
    return Counter(kind for kind, _ in list(_known.values()))
