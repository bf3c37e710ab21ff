"""No rule calls critical what `prepare` makes: a small version of `python -m benchmarks.kinds`."""

import pytest

from benchmarks.kinds import all_kinds, measure


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    all_kinds(folder, num_usual=16, sentences_each=6)
    return folder


def test_no_rule_calls_critical_what_prepare_makes(params, corpus, tmp_path):
    """Four seeds; children, whispering and dull voices; every condition, codec and style."""
    counts = params.prepare.conversations.model_copy(update={"train": 20, "dev": 2, "test": 4})
    variety = params.prepare.variety.model_copy(update={"stock_size": 2, "opus_share": 0.4, "gated_share": 0.3})
    changes = {"conversations": counts, "conversation_s": 20.0, "variety": variety, "num_workers": 1}
    params = params.model_copy(update={"prepare": params.prepare.model_copy(update=changes)})
    found = measure(params, range(1, 5), corpus=corpus, folder=tmp_path)
    assert found["critical"] == {}
    assert found["recordings"] == 104
    assert set(found["condition"]) == {"close", "room", "far", "telephone", "headset"}
    assert set(found["style"]) == {"meeting", "call", "broadcast", "sparse", "held out"}
    assert set(found["voice"]) == {"es", "child", "whisper", "klatt"}
