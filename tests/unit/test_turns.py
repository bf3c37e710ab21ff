import numpy as np
import pytest

from voiceflow.errors import DataError
from voiceflow.timebase import FrameGrid
from voiceflow.turns import (
    Turn,
    merge_turns,
    read_rttm,
    scores_to_turns,
    to_diarized_json,
    to_rttm,
    to_srt,
    turns_to_activity,
)

GRID = FrameGrid(0.1)


def turns_of(scores, **options):
    return scores_to_turns(np.array(scores, np.float32).reshape(len(scores), -1), grid=GRID, **{"onset": 0.5} | options)


def test_a_turn_open_on_the_last_frame_ends_with_it():
    assert turns_of([0, 0.9, 0.9]) == [Turn(0.1, 0.3, "speaker_0", 0.9)]


def test_hysteresis_keeps_a_speaker_who_falls_between_the_thresholds():
    assert [(t.start_s, t.end_s) for t in turns_of([0.4, 0.6, 0.4, 0.4, 0.2, 0.4], offset=0.3)] == [(0.1, 0.4)]


def test_gaps_are_filled_before_short_turns_are_dropped():
    found = turns_of([0.9, 0, 0.9, 0, 0, 0, 0.9], min_on_s=0.2, min_off_s=0.2)
    assert [(t.start_s, t.end_s) for t in found] == [(0.0, 0.3)]


def test_overlapping_slots_give_overlapping_turns():
    assert {t.speaker for t in turns_of([[0.9, 0.8], [0.9, 0.8]])} == {"speaker_0", "speaker_1"}


def test_scores_of_another_shape_are_a_wrong_call():
    with pytest.raises(ValueError, match="shape"):
        scores_to_turns(np.zeros(3, np.float32), grid=GRID, onset=0.5)


def test_rttm_survives_writing_and_reading(tmp_path):
    turns = [Turn(0.0, 1.25, "a"), Turn(1.0, 2.5, "b")]
    (tmp_path / "x.rttm").write_text(to_rttm(turns, "my file"))
    assert read_rttm(tmp_path / "x.rttm") == {"my_file": turns}


@pytest.mark.parametrize(
    "line", ["SPEAKER a 1 x 1.0 <NA> <NA> b", "SPEAKER a 1 0.0 -1.0 <NA> <NA> b", "SPEAKER a 1 nan 1 . . b"]
)
def test_a_bad_rttm_line_is_named(tmp_path, line):
    (tmp_path / "x.rttm").write_text("SPEAKER a 1 0.0 1.0 <NA> <NA> b\n" + line)
    with pytest.raises(DataError, match="line 2"):
        read_rttm(tmp_path / "x.rttm")


def test_srt_and_diarized_json_tell_the_same_turns():
    turns = [Turn(61.5, 62.0, "speaker_1")]
    assert "00:01:01,500 --> 00:01:02,000\n[speaker_1]" in to_srt(turns)
    assert to_diarized_json(turns, duration_s=70.0)["segments"][0]["start"] == 61.5


def test_activity_is_the_share_of_each_frame():
    activity = turns_to_activity([Turn(0.05, 0.3, "a")], speakers=["a"], num_frames=4, frame_s=0.1)
    assert activity[:, 0] == pytest.approx([0.5, 1.0, 1.0, 0.0], abs=1e-6)


def test_merging_keeps_the_longer_end():
    assert merge_turns([Turn(0, 5, "a"), Turn(1, 2, "a"), Turn(5.1, 6, "a")], max_gap_s=0.2) == [Turn(0, 6, "a")]
