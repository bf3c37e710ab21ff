import pytest

from voiceflow.metrics import count_flips, der_interval, score
from voiceflow.turns import Turn

REFERENCE = [Turn(0, 4, "ann"), Turn(4, 8, "bob"), Turn(8, 12, "ann"), Turn(9, 9.8, "bob")]


def test_a_label_that_changes_is_a_flip():
    answer = [Turn(0, 4, "s0"), Turn(4, 8, "s1"), Turn(8, 12, "s2")]
    assert count_flips(REFERENCE, answer) == 1
    assert count_flips(REFERENCE, [*answer[:2], Turn(8, 12, "s0")]) == 0


def test_a_short_word_under_somebody_elses_talk_is_no_flip():
    """Bob's second turn lies within Ann's: that she is heard there says nothing of his label."""
    assert count_flips(REFERENCE, [Turn(0, 4, "s0"), Turn(4, 8, "s1"), Turn(8, 12, "s0")]) == 0


def test_the_interval_holds_the_figure_and_narrows_with_more_recordings():
    rows = [score([Turn(0, 10, "ann")], [Turn(0, 10 - wrong, "s0")], duration_s=10) for wrong in (0.5, 1, 2, 3, 1, 0.2)]
    low, high = der_interval(rows)
    assert low < 0.128333 < high
    low_more, high_more = der_interval(rows * 10)
    assert high_more - low_more < high - low
    assert der_interval(rows[:1]) == (pytest.approx(0.05), pytest.approx(0.05))
