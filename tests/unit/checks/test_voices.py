from collections import defaultdict

import pytest

from voiceflow.checks.voices import Voices, voice_vectors
from voiceflow.corpora.read import read_utterances
from voiceflow.turns import Turn


@pytest.fixture(scope="module")
def vectors(speech, is_real):
    """Of twenty voices, each in a recording of its own."""
    found = {}
    for speaker, utterances in read_utterances(speech).items():
        if (is_real and not speaker.startswith("so-")) or len(found) == 20:
            continue
        samples = utterances[0].place.load()
        turns = [Turn(spoken.start_s, spoken.end_s, speaker) for spoken in utterances]
        halves = turns[: len(turns) // 2], turns[len(turns) // 2 :]
        parts = [voice_vectors(samples, half) for half in halves]
        if all(speaker in part for part in parts):
            found[speaker] = {"first": parts[0][speaker], "second": parts[1][speaker]}
    return found


def test_twenty_people_are_twenty_voices(vectors):
    voices = Voices(vectors)
    assert voices.is_enough
    assert voices.same_anywhere(min_score=8.0) == []


def test_people_under_two_names_in_one_recording_are_found(vectors):
    found = 0
    for speaker in vectors:
        twice = defaultdict(dict, {name: {name: of["first"] + of["second"]} for name, of in vectors.items()})
        twice[speaker] = {speaker: vectors[speaker]["first"]}
        twice[f"{speaker}-b"] = {speaker: vectors[speaker]["second"]}
        pairs = Voices(twice).same_in_recording(min_likeness=0.8)
        found += any({pair.first, pair.second} == {speaker, f"{speaker}-b"} for pair in pairs)
    assert found >= 0.3 * len(vectors)


def test_few_names_say_nothing(vectors):
    few = dict(list(vectors.items())[:5])
    assert not Voices(few).is_enough
    assert Voices(few).same_anywhere(min_score=0.0) == []
