"""Whatever clients send: an answer with a code, no crash, no other stream disturbed."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz import START, WORDS, Fuzzer
from tests.e2e.test_streams import expected, stream
from voiceflow.errors import StreamError
from voiceflow.streaming.messages import Start, parse, settings_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def refusal(text):
    """What is said against a message; None if it is taken."""
    try:
        parsed = parse(text)
        if isinstance(parsed, Start):
            settings_of(parsed, default_latency_s=1.04)
    except StreamError as err:
        return str(err)
    return None


@given(st.text() | JSON.map(json.dumps))
def test_any_text_is_a_message_or_refused(text):
    assert "expected" in (refusal(text) or "expected")


@given(st.sampled_from(WORDS), st.dictionaries(st.sampled_from([*START, "x"]), JSON))
def test_any_change_of_a_message_is_taken_or_refused(message, changes):
    assert "expected" in (refusal(json.dumps(message | changes)) or "expected")


@pytest.mark.e2e
def test_malformed_messages_packets_and_frames_disturb_nobody(start_server, model, talk):
    port, _ = start_server("serving.transformer", "--workers", "2")

    async def run():
        fuzzer = Fuzzer(port, seed=5)
        good = [asyncio.create_task(stream(port, talk)) for _ in range(3)]
        report = await fuzzer.run(400)
        return report, await asyncio.gather(*good)

    report, turns = asyncio.run(run())
    assert report.faults == []
    assert report.sent >= 400
    assert len(report.codes) > 8
    assert turns == [expected(model, talk)] * 3
    assert "Traceback" not in Path(start_server.logs[-1]).read_text()
