"""What is normal for the champion: statistics of streams that came with its files, or were set since; and drift reports
in MLflow."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voiceflow.adapters.registry import MODEL_NAME, MlflowRegistry
from voiceflow.adapters.tracking import asking, tracking_run
from voiceflow.contract import REFERENCE_FILE
from voiceflow.errors import DataError

TAG = "drift.reference_run"
"""Of a version: the run whose artifact is its reference, instead of the file it came with."""


def read_reference(path: Path) -> list[dict[str, Any]]:
    """Statistics of streams, a line each.

    Raises:
        DataError: Missing, or not such a file.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: expected a JSON object a line, as servers write them ({err})") from err


def find_champion() -> tuple[str, str]:
    """Version and SHA-256 of the champion.

    Raises:
        DataError: There is none.
    """
    registry = MlflowRegistry()
    version = registry.version_of("champion")
    if version is None:
        raise DataError("there is no champion to compare with; pass --reference FILE, or promote a model")
    return version, registry.tags_of(version).get("digest", "")


def champion_reference() -> tuple[str, str, list[dict[str, Any]]]:
    """Version and SHA-256 of the champion, and what is normal for it.

    Raises:
        DataError: No champion, or none with a reference.
    """
    version, digest = find_champion()
    registry = MlflowRegistry()
    run_id = registry.tags_of(version).get(TAG)
    if run_id:
        import mlflow

        with asking(), tempfile.TemporaryDirectory() as scratch:
            found = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=REFERENCE_FILE, dst_path=scratch)
            return version, digest, read_reference(Path(found))
    path = registry.download(version) / REFERENCE_FILE
    if not path.is_file():
        raise DataError(
            f"version {version} came without {REFERENCE_FILE}; make one of live streams with "
            "`voiceflow drift --set-reference`"
        )
    return version, digest, read_reference(path)


def set_reference(version: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Let these streams be what is normal for a version."""
    import mlflow

    with asking(), tracking_run(name="drift reference") as run, tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / REFERENCE_FILE
        path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
        mlflow.log_artifact(str(path))
        mlflow.MlflowClient().set_model_version_tag(MODEL_NAME, version, TAG, run.info.run_id)


def log_drift(verdict: Mapping[str, Any], report: Path) -> None:
    """A run with the distances, the verdict and Evidently's pages."""
    import mlflow

    with asking(), tracking_run(name="drift"):
        mlflow.set_tags({"drift": str(verdict["drifted"]).lower(), "model_version": str(verdict["model"])})
        if verdict["slice"]:
            mlflow.set_tags({"slice": verdict["slice"]["name"], "why": "; ".join(verdict["slice"]["words"])[:4900]})
        for row in verdict["columns"]:
            mlflow.log_metrics(
                {f"drift/{row['name']}/{key}": float(row[key]) for key in ("distance", "p_value", "window")}
            )
        mlflow.log_artifacts(str(report), "drift")
