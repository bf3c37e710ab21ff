"""Whatever a client missed, and wherever it is cut off while it is told again: in the end it knows all turns."""

import json
from collections import deque
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.api.conversation import Conversation
from voiceflow.config import load_params
from voiceflow.streaming.speakers import TurnTracker

SLOTS = 4
DECISION = load_params().decision


class Spoken:
    """A session whose activities a test draws; speakers and turns are a real tracker's."""

    is_done, num_answered = False, 0

    def __init__(self):
        self.tracker = TurnTracker(DECISION, SLOTS)
        self.events = []

    def step(self, activity_S):
        self.events += self.tracker.push(np.asarray(activity_S, np.float32))

    def merge(self):
        silent = [slot for slot in self.tracker.established() if not self.tracker.is_open(slot)]
        if len(silent) > 1:
            self.events.append(self.tracker.merge(silent[-1], silent[0]))

    def events_to_send(self):
        events, self.events = self.events, []
        return events

    @property
    def ended(self):
        return list(self.tracker.final)


class Client:
    """Knows what it was told before it was cut off, and comes back with the last seq."""

    def __init__(self):
        self.last_seq, self.turns, self.left = 0, {}, 0

    def say(self, data):
        if not self.left:
            return
        self.left -= 1
        message = json.loads(data)
        assert message["seq"] > self.last_seq
        assert message["variant"] == "champion"
        self.last_seq = message["seq"]
        for row in [message] if message["type"] == "segment" else message["segments"]:
            known = self.turns.get(row["id"], {"rev": -1})
            if row["rev"] >= known["rev"]:
                self.turns[row["id"]] = known | row

    def gone(self, error):
        raise AssertionError(error)


def talk(rng, number):
    """Activities of people who take turns, some at the same time."""
    steps = []
    for _ in range(number):
        speaking = rng.random(SLOTS) < 0.4
        steps += [np.where(speaking, 0.9, 0.0)] * int(rng.integers(4, 20)) + [np.zeros(SLOTS)] * int(rng.integers(5, 9))
    return steps


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kept=st.integers(1, 12),
    cuts=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), max_size=8),
)
def test_a_client_that_was_cut_anywhere_knows_all_turns_in_the_end(seed, kept, cuts):
    rng = np.random.default_rng(seed)
    session = Spoken()
    flips = SimpleNamespace(inc=lambda number: None)
    engine = SimpleNamespace(metrics=SimpleNamespace(flips=flips))
    stream = SimpleNamespace(session=session, engine=engine, failure=None, on_scored=None)
    model = {"variant": "champion"}
    conversation = Conversation("id", stream, None, recent=deque(maxlen=kept), model=model)
    client = Client()
    conversation.listener, client.left = client, 3
    come_back = dict(cuts)
    for number, activity_S in enumerate(talk(rng, 20)):
        session.step(activity_S)
        if rng.random() < 0.02:
            session.merge()
        if number in come_back:  # and is cut off again after so many messages
            client.left = come_back[number]
            conversation.tell_again(after_seq=client.last_seq)
        conversation.scored()
    session.events += session.tracker.end()
    conversation.scored()
    client.left = 10**6
    conversation.tell_again(after_seq=client.last_seq)
    assert {
        one.id: (one.turn.speaker, round(one.turn.start_s, 3), round(one.turn.end_s, 3)) for one in session.ended
    } == {name: (row["speaker"], row["start_s"], row["end_s"]) for name, row in client.turns.items() if row["final"]}
