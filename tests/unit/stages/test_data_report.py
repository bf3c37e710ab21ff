"""Real conversations beside simulated ones."""

import json

import pytest
import soundfile

from voiceflow.corpora.description import Published, read_descriptions
from voiceflow.errors import DataError
from voiceflow.rhythm import SHARES
from voiceflow.stages.data_report import FIGURES, HEADS, PAGE, PICTURE, compare_rhythms, mean_ks, table_of, write_report
from voiceflow.stages.dataset import read_recordings, read_samples


@pytest.fixture(scope="module")
def talks(dataset, tmp_path_factory):
    """Three conversations of the dataset as if they had been recorded."""
    folder = tmp_path_factory.mktemp("talks") / "calls"
    folder.mkdir()
    for recording in read_recordings(dataset, "test")[:3]:
        soundfile.write(folder / f"{recording.name}.wav", read_samples(dataset, recording), 16_000)
        (folder / f"{recording.name}.rttm").write_text((dataset / recording.rttm).read_text())
    return folder


def test_a_set_is_nearest_to_itself_and_the_report_has_all_of_it(dataset, talks, tmp_path):
    compared = compare_rhythms(dataset, [talks])
    assert set(compared.real) == {"calls"}
    styles = {recording.style for recording in read_recordings(dataset, "train")}
    assert styles
    assert set(compared.simulated) == {"training", "held-out", *styles}
    # The calls are half of the held-out conversations.
    assert compared.nearest() == {"calls": "held-out"}
    assert mean_ks(compared.distances["held-out"]["calls"]) < mean_ks(compared.distances["training"]["calls"])
    described = read_descriptions()
    figures = write_report(compared, described, tmp_path)
    assert json.loads((tmp_path / FIGURES).read_text()) == figures
    assert figures["published"]["voxconverse"]["overlap_share"] == 0.038
    page = (tmp_path / PAGE).read_text()
    for word in ("real: calls", "published: ami", "simulated: held-out", "Wasserstein", "Horiguchi"):
        assert word in page
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_for_each_set(dataset, talks):
    compared = compare_rhythms(dataset, [talks])
    told = Published(source="a paper", speech_share=0.9)
    rows = table_of(compared, {"talk shows": told.model_dump()})
    assert all(len(row) == len(HEADS) for row in rows)
    assert rows[-1][0] == "published: talk shows"
    assert rows[-1][-len(SHARES) :] == ["90.0", "", "", ""]


def test_nothing_to_measure_is_told(tmp_path, talks):
    with pytest.raises(DataError, match="got none"):
        compare_rhythms(None, [])
    soundfile.write(tmp_path / "alone.wav", [0.0] * 16_000, 16_000)
    with pytest.raises(DataError, match="none of its conversations has turns"):
        compare_rhythms(None, [tmp_path])


def test_real_sets_keep_their_length_their_names_and_what_was_left_out(dataset, tmp_path):
    folder = tmp_path / "meeting"  # as a style is called
    folder.mkdir()
    soundfile.write(folder / "short.wav", [0.0] * 160_000, 16_000)
    (folder / "short.rttm").write_text("SPEAKER short 1 0.0 2.0 <NA> <NA> a <NA> <NA>\n")
    soundfile.write(folder / "broken.wav", [0.0] * 16_000, 16_000)
    (folder / "broken.rttm").write_text("SPEAKER broken 1 x 2.0 <NA> <NA> a <NA> <NA>\n")
    compared = compare_rhythms(dataset, [folder])
    assert compared.real["meeting"].shares["speech_share"] == pytest.approx(0.2)
    assert [("broken.rttm, line 1" in why) for why in compared.left_out] == [True]
    assert "training" in compared.simulated
    with pytest.raises(DataError, match="two sets of real conversations are called meeting"):
        compare_rhythms(dataset, [folder, folder])
