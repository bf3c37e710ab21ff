"""MLflow's tracking side: the experiment, its runs, and what goes wrong on the way to them."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from voiceflow.adapters.home import home, tracking_uri
from voiceflow.errors import PlatformError

EXPERIMENT = "voiceflow"


def mlflow_client() -> Any:
    """A client on the configured tracking server; the SQLite store is made on first use.

    Raises:
        PlatformError: The server cannot be reached.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    # A server that is gone is told in seconds, not minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # What we print is ours.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
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


@contextmanager
def asking() -> Iterator[None]:
    """Whatever goes wrong between here and MLflow is told as such."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException, OSError) as err:
        said = str(err).strip().splitlines()[0][:300] if str(err).strip() else type(err).__name__
        raise PlatformError(f"MLflow at {tracking_uri()} does not answer as it should ({said})") from err


def found(ask: Callable[[], Any]) -> Any:
    """The answer, or None where MLflow says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as err:
        message = str(err).lower()
        if err.error_code == "RESOURCE_DOES_NOT_EXIST" or (
            err.error_code == "INVALID_PARAMETER_VALUE" and ("not found" in message or "alias" in message)
        ):
            return None
        raise
