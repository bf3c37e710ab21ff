"""MLflow: the tracking run of a model, and the registry of versions and aliases."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voiceflow.adapters.home import home, tracking_uri
from voiceflow.errors import ModelError, PlatformError

EXPERIMENT = "voiceflow"
MODEL_NAME = "voiceflow-diarizer"
ALIASES = ("champion", "challenger", "previous")


def mlflow_client() -> Any:
    """A client on the configured tracking server; the SQLite store is made on first use.

    Raises:
        PlatformError: The server cannot be reached.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow

        uri = tracking_uri()
        if uri.startswith("sqlite:///"):
            home().mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        try:
            if client.get_experiment_by_name(EXPERIMENT) is None:
                # A served store knows its own place; SQLite would take the current folder.
                local = {"artifact_location": (home() / "mlartifacts").as_uri()} if uri.startswith("sqlite:///") else {}
                client.create_experiment(EXPERIMENT, **local)
        except Exception as err:  # mlflow raises its own, requests' and sqlalchemy's errors here
            raise PlatformError(f"MLflow at {uri} does not answer ({err}); check MLFLOW_TRACKING_URI") from err
    return client


@contextmanager
def tracking_run(run_id: str | None = None, *, name: str | None = None) -> Iterator[Any]:
    """An MLflow run of the experiment: a new one, or one to go on with; failed if the block raises."""
    client = mlflow_client()
    import mlflow

    mlflow.set_experiment(EXPERIMENT)
    del client
    with mlflow.start_run(run_id=run_id or None, run_name=name) as run:
        yield run


def log_report(prefix: str, report: Mapping[str, Any]) -> None:
    """Log every number of a report as a metric of the active run, named by its path."""
    import mlflow

    mlflow.log_metrics(dict(_numbers(prefix, report)))


def _numbers(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{prefix}/{str(key).replace(' ', '_')}", inner)
    elif isinstance(value, bool | int | float):
        yield prefix, float(value)


class MlflowRegistry:
    """`stages.promote.Registry` on MLflow."""

    def __init__(self) -> None:
        self._client = mlflow_client()

    def version_of(self, alias: str) -> str | None:
        """See `Registry`."""
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.get_model_version_by_alias(MODEL_NAME, alias).version)
        except MlflowException:
            return None

    def register(self, files: dict[str, Path], *, tags: dict[str, str], run_id: str | None) -> str:
        """See `Registry`; without a run one is made to hold the files."""
        import mlflow
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(MODEL_NAME)
        except MlflowException as err:
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise PlatformError(f"MLflow refused to make {MODEL_NAME}: {err}") from err
        with tracking_run(run_id, name=None if run_id else "register") as run, tempfile.TemporaryDirectory() as folder:
            for name, path in files.items():
                shutil.copyfile(path, Path(folder) / name)
            mlflow.log_artifacts(folder, artifact_path="model")
            source = f"runs:/{run.info.run_id}/model"
            version = self._client.create_model_version(MODEL_NAME, source, run_id=run.info.run_id, tags=tags)
        return str(version.version)

    def set_alias(self, alias: str, version: str) -> None:
        """See `Registry`."""
        self._client.set_registered_model_alias(MODEL_NAME, alias, version)

    def download(self, version: str) -> Path:
        """See `Registry`; files are kept under `home()`, a version never changes."""
        import mlflow

        folder = home() / "cache" / "models" / f"{MODEL_NAME}-{version}-{self._created(version)}"
        if not (folder / "diarizer.onnx").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/{version}", dst_path=str(folder))
        return folder

    def find_digest(self, digest: str) -> str | None:
        """See `Registry`."""
        for version in self._client.search_model_versions(f"name='{MODEL_NAME}'"):
            if version.tags.get("digest") == digest:
                return str(version.version)
        return None

    def history(self) -> list[dict[str, Any]]:
        """Versions, newest first, with aliases and tags."""
        versions = self._client.search_model_versions(f"name='{MODEL_NAME}'")
        aliases: dict[str, list[str]] = {}
        for alias in ALIASES:
            version = self.version_of(alias)
            if version is not None:
                aliases.setdefault(version, []).append(alias)
        rows = [
            {
                "version": str(version.version),
                "aliases": aliases.get(str(version.version), []),
                "created_ms": version.creation_timestamp,
                "run_id": version.run_id,
                "tags": dict(version.tags),
            }
            for version in versions
        ]
        return sorted(rows, key=lambda row: int(row["version"]), reverse=True)

    def storage_uri(self, version: str) -> str:
        """Where the files of a version lie, for KServe's storageUri."""
        from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

        uri = str(self._client.get_model_version_download_uri(MODEL_NAME, version))
        return RunsArtifactRepository.get_underlying_uri(uri) if uri.startswith("runs:/") else uri

    def _created(self, version: str) -> int:
        return int(self._client.get_model_version(MODEL_NAME, version).creation_timestamp)


def resolve_model(uri: str) -> Path:
    """The model file behind a URI.

    Args:
        uri: ``pretrained``; a path of a file or a folder with diarizer.onnx; or
            ``models:/voiceflow-diarizer@champion`` (or ``.../3``).

    Raises:
        ModelError: Nothing there.
    """
    from voiceflow.runtime import pretrained_path

    if uri == "pretrained":
        return pretrained_path()
    if not uri.startswith("models:/"):
        path = Path(uri)
        path = path / "diarizer.onnx" if path.is_dir() else path
        if not path.is_file():
            raise ModelError(f"{uri}: no such model; expected 'pretrained', a path, or models:/{MODEL_NAME}@champion")
        return path
    registry = MlflowRegistry()
    name, _, which = uri.removeprefix("models:/").replace("@", "/@").partition("/")
    version = registry.version_of(which[1:]) if which.startswith("@") else which
    if name != MODEL_NAME or not version:
        raise ModelError(f"{uri}: no such version in {tracking_uri()}; see `voiceflow history`, or run `voiceflow run`")
    return registry.download(version) / "diarizer.onnx"
