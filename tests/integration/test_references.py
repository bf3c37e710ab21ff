import pytest

from voiceflow.adapters.references import champion_reference, find_champion, log_drift, read_reference, set_reference
from voiceflow.adapters.registry import MlflowRegistry
from voiceflow.audio import file_digest
from voiceflow.errors import DataError
from voiceflow.runtime import pretrained_path
from voiceflow.stages.promote import ensure_champion


def test_what_is_normal_is_kept_with_the_champion_and_reports_are_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("VOICEFLOW_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(DataError, match="there is no champion"):
        find_champion()
    version = ensure_champion(MlflowRegistry())
    assert find_champion() == (version, file_digest(pretrained_path()))
    with pytest.raises(DataError, match="--set-reference"):
        champion_reference()
    rows = [{"audio_s": 60.0, "snr_db": float(number)} for number in range(50)]
    set_reference(version, rows)
    assert champion_reference() == (version, file_digest(pretrained_path()), rows)
    report = tmp_path / "report"
    report.mkdir()
    (report / "drift.html").write_text("<html>")
    column = {"name": "snr_db", "distance": 2.0, "p_value": 1e-9, "window": 3.0}
    slice_ = {"name": "far", "words": ["snr_db falls from 30 to 20"]}
    log_drift({"drifted": True, "model": version, "slice": slice_, "columns": [column]}, report)
    import mlflow

    [run] = mlflow.search_runs(
        experiment_names=["voiceflow"], filter_string="tags.drift = 'true'", output_format="list"
    )
    assert run.data.tags["slice"] == "far"
    assert run.data.metrics["drift/snr_db/distance"] == 2.0


def test_a_reference_that_is_no_table_is_told(tmp_path):
    (tmp_path / "x.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match="a JSON object a line"):
        read_reference(tmp_path / "x.jsonl")
