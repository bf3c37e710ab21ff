"""The whole loop, unattended: minutes long, so only `python -m pytest -m long` runs it."""

import shutil

import pytest

from benchmarks.drift_loop import go_round

pytestmark = pytest.mark.long


def test_streams_that_shift_end_in_a_new_model_without_anybodys_help(tmp_path):
    for program in ("prometheus", "prometheus-alertmanager", "espeak-ng"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install {program}")
    steps = go_round(tmp_path / "loop", say=print)
    assert all(step["holds"] for step in steps)
    told = " ".join(step["step"] for step in steps)
    for word in (
        "nothing found",
        "drift, named telephone",
        "fires in Alertmanager",
        "gates have judged",
        "is champion",
    ):
        assert word in told
