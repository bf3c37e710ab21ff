import numpy as np
import pytest

from voiceflow.metrics import score
from voiceflow.streaming.cross_der import CrossDer
from voiceflow.turns import Turn


def conversation(rng, labels, seconds):
    turns, time = [], 0
    while time < seconds / 0.08:
        length = int(rng.integers(5, 40))
        turns.append(Turn(round(time * 0.08, 6), round((time + length) * 0.08, 6), str(rng.choice(labels))))
        time += length + int(rng.integers(-5, 10))
        time = max(time, 0)
    return merged(turns)


def merged(turns):
    """No label overlaps itself."""
    kept = []
    for turn in sorted(turns):
        if any(turn.speaker == one.speaker and turn.start_s < one.end_s for one in kept):
            continue
        kept.append(turn)
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_in_one_piece_it_is_the_der_of_the_metrics(seed):
    rng = np.random.default_rng(seed)
    reference, hypothesis = conversation(rng, ["a", "b", "c"], 60), conversation(rng, ["x", "y"], 60)
    until_s = max(turn.end_s for turn in reference + hypothesis)
    error_s, speech_s = CrossDer().compare(reference, hypothesis, until_s=until_s)
    known = score(reference, hypothesis, duration_s=until_s)
    assert error_s / speech_s == pytest.approx(known.der, abs=1e-6)


def test_piece_by_piece_the_same_labels_cost_nothing_and_swapped_ones_cost():
    reference = [Turn(8.0 * n, 8.0 * n + 4.0, "ab"[n % 2]) for n in range(20)]
    renamed = [Turn(t.start_s, t.end_s, {"a": "x", "b": "y"}[t.speaker]) for t in reference]
    swaps = [
        Turn(t.start_s, t.end_s, {"x": "y", "y": "x"}[t.speaker] if t.start_s % 48.0 >= 24.0 else t.speaker)
        for t in renamed
    ]
    for hypothesis, low, high in ((reference, 0, 0), (renamed, 0, 0), (swaps, 0.3, 0.7)):
        meter, errors_s, speech_s = CrossDer(), 0.0, 0.0
        for until_s in np.arange(8.0, 168.0, 8.0):
            error_s, spoken_s = meter.compare(reference, hypothesis, until_s=float(until_s))
            errors_s, speech_s = errors_s + error_s, speech_s + spoken_s
        assert speech_s == pytest.approx(80.0)
        assert low <= errors_s / speech_s <= high


def test_nothing_new_is_nothing():
    meter = CrossDer()
    assert meter.compare([Turn(0, 8, "a")], [], until_s=8.0) == (pytest.approx(8.0), pytest.approx(8.0))
    assert meter.compare([Turn(0, 8, "a")], [], until_s=8.0) == (0.0, 0.0)
