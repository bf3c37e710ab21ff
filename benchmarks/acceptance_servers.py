"""Items of servers that stay small and that nobody can break: churn, load, rounds, hostile clients, keys."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import churn, hostile, rounds
from benchmarks.items import Row, chosen, sized, tests_pass
from benchmarks.server import Server
from benchmarks.streams import load
from voiceflow.runtime import pretrained_path

P99_MS, KB_PER_STREAM, FREE_CORES = 100.0, 150.0, 0.5
STREAMS, AT_ONCE = sized((20_000, 60), tiny=(60, 6))
ROUNDS, UNLUCKY = sized((20, 200), tiny=(1, 4))
LONG, LONG_S = sized((500, 300.0), tiny=(4, 3.0))
MANY, MANY_S = sized((1000, 60.0), tiny=(4, 3.0))


def items(*, slow: bool, item: str = "") -> Iterator[tuple[str, Row]]:
    """Each item's name and row."""
    numbers: dict[str, Callable[[], Iterator[tuple[str, Row]]]] = {"1": stays_small, "2": unbroken, "3": keys}
    yield from chosen(numbers, item)


def stays_small() -> Iterator[tuple[str, Row]]:
    """Item 1."""
    figures = churn.measure(churn.spoken(), STREAMS, at_once=AT_ONCE)
    yield f"1 {STREAMS} short streams, 2 workers", {"passed": not churn.failed(figures), "figures": figures}
    row = _load(LONG, LONG_S)
    passed = row["p99_ms"] < P99_MS and not row["lost"] and row["kb_a_stream"] <= KB_PER_STREAM
    yield f"1 {LONG} streams of speech for {LONG_S:g} s", {"passed": passed, "figures": row}
    row = _load(MANY, MANY_S)
    passed = not row["lost"] and row["held"] == MANY and (row["cores_idle"] < FREE_CORES or row["p99_ms"] < P99_MS)
    yield f"1 {MANY} streams of speech", {"passed": passed, "figures": row}


def _load(streams: int, seconds: float) -> dict[str, Any]:
    """Figures of so many paced streams, with what each takes of memory."""
    with Server("--workers", "2") as server:
        told = load(server, streams, seconds=seconds, source=pretrained_path().with_name("sample.flac"))
    empty_mb, full_mb = told["server_empty_mb"], told["server_full_mb"]
    return {
        "held": streams - told["refused_streams"],
        "p50_ms": told["emission_ms"]["p50"],
        "p99_ms": told["emission_ms"]["p99"],
        "lost": told["lost"],
        "empty_mb": empty_mb,
        "full_mb": full_mb,
        "kb_a_stream": round(1000.0 * (full_mb - empty_mb) / streams, 1),
        **{name: told[name] for name in ("server_cores", "client_cores", "cores_idle", "server_us_per_stream_second")},
    }


def unbroken() -> Iterator[tuple[str, Row]]:
    """Item 2."""
    rows = rounds.measure(
        churn.spoken(), rounds=ROUNDS, streams=UNLUCKY, seconds=sized(12.0, tiny=4.0), cut_every_s=4.0
    )
    yield f"2 {ROUNDS} rounds of {UNLUCKY} unlucky streams", {"passed": not rounds.failed(rows), "figures": rows}
    names = sized(list(hostile.ATTACKS), tiny=["pings"])
    told = hostile.measure(sized(100, tiny=4), seconds=sized(10.0, tiny=2.0), names=names)
    yield "2 p99 of others beside a hostile client", {"passed": not hostile.faults(told), "figures": told}


def keys() -> Iterator[tuple[str, Row]]:
    """Item 3."""
    yield "3 what each path asks for", tests_pass("tests/e2e/test_guard.py")
