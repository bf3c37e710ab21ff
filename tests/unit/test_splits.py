import json
import time

import pytest

from voiceflow.adapters.splits import notes_at, read_split, write_split
from voiceflow.adapters.traffic import NotesJournal
from voiceflow.errors import ConfigError, PlatformError
from voiceflow.split import Served, Split, share_of
from voiceflow.stages.rollout import Rollout

CHAMPION = Served(uri="pretrained", digest="a" * 64, version="1")
CHALLENGER = Served(uri="models:/voiceflow-diarizer/2", digest="b" * 64, version="2")


@pytest.fixture
def notes(tmp_path):
    return notes_at(str(tmp_path / "deep" / "split.json"))


def test_a_split_is_read_as_it_was_written_and_none_is_none(notes):
    assert read_split(notes) is None
    split = Split(champion=CHAMPION, challenger=CHALLENGER, weight=0.05, shadow=0.1)
    write_split(notes, split)
    assert read_split(notes) == split


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": 1.5}, "weight"),
        ({"weight": 0.5}, "without a challenger"),
        ({"challenger": CHAMPION.model_dump()}, "the same model"),
        ({"withdrawn": ["a" * 64]}, "withdrawn"),
        ({"wieght": 0.1}, "wieght"),
        ({"champion": {"uri": ""}}, "champion.uri"),
    ],
)
def test_what_is_no_split_is_refused_with_its_place(notes, changes, says):
    notes.put("", json.dumps({"champion": CHAMPION.model_dump()} | changes))
    with pytest.raises(ConfigError, match=says):
        read_split(notes)


def test_shares_are_even_and_the_same_everywhere():
    shares = [share_of(f"{number:024x}", "variant") for number in range(4000)]
    assert shares == [share_of(f"{number:024x}", "variant") for number in range(4000)]
    assert 0.04 < sum(share < 0.05 for share in shares) / len(shares) < 0.06
    other = [share_of(f"{number:024x}", "shadow") for number in range(4000)]
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(shares, other, strict=True)) / len(shares)
    assert 0.22 < both < 0.28


def test_one_controller_at_a_time_until_it_is_silent(notes):
    journal = NotesJournal(notes, stale_s=60.0)
    notes.put("lease", json.dumps({"owner": "ada@elsewhere:7", "at": time.time() - 5.0}))
    assert journal.other == "ada@elsewhere:7"
    with pytest.raises(PlatformError, match="ada@elsewhere"):
        journal.claim()
    with pytest.raises(PlatformError, match="one at a time"):
        journal.write(Rollout(champion="1", challenger="2"))
    journal.release()
    assert journal.other == "ada@elsewhere:7"
    notes.put("lease", json.dumps({"owner": "ada@elsewhere:7", "at": time.time() - 90.0}))
    journal.claim()
    journal.write(Rollout(champion="1", challenger="2"))
    assert journal.read() == Rollout(champion="1", challenger="2")
    notes.put("journal", "{}")
    with pytest.raises(ConfigError, match="journal of"):
        journal.read()


def test_a_wish_to_call_off_is_for_one_challenger_and_from_now_on(notes):
    journal = NotesJournal(notes, stale_s=60.0)
    began_s = time.time()
    assert journal.called_off("2", since_s=began_s) == ""
    journal.call_off("2", "aborted by ada")
    assert journal.called_off("2", since_s=began_s) == "aborted by ada"
    assert journal.called_off("3", since_s=began_s) == ""
    assert journal.called_off("2", since_s=time.time() + 1.0) == ""
