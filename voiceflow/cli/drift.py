"""`voiceflow drift`: whether live streams still sound like those the champion was judged on; and what then."""

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voiceflow.cli.console import emit_json, out
from voiceflow.config import DriftConfig, load_params
from voiceflow.errors import ConfigError, DataError, PlatformError, VoiceflowError

if TYPE_CHECKING:
    from voiceflow.adapters.stream_log import StreamLog

MOST_NORMAL = 10_000
"""Streams in a reference, the newest."""


def drift(
    statistics: Annotated[
        str, typer.Option(envvar="VOICEFLOW_STATISTICS", help="Folder or redis:// address that servers write to.")
    ] = "",
    reference: Annotated[
        Path | None, typer.Option(help="Statistics to compare with, instead of those logged with the champion.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(help="Streams to look at; by default drift.window_streams.", min=20)
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Only streams of the last hours.", min=0.0)] = None,
    report: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("reports/drift"),
    set_reference: Annotated[
        bool, typer.Option("--set-reference", help="From now on these streams are what is normal for the champion.")
    ] = False,
    log: Annotated[bool, typer.Option(help="Log the report to MLflow, where there is a champion.")] = True,
    pushgateway: Annotated[
        str | None, typer.Option(help="host:port of a Prometheus Pushgateway, for runs that end.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Where streams have drifted, train for the slice they sound like.")
    ] = False,
    profile: Annotated[str, typer.Option(help="With --retrain: profile of params.yaml.")] = "quick",
    host: Annotated[str | None, typer.Option(help="With --retrain: submit to this Kubeflow endpoint.")] = None,
    data_repo: Annotated[str | None, typer.Option(help="With --host: see `voiceflow run`.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="With --host: a recurring run there, as cron with seconds: '0 17 * * * *'.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again, and serve /metrics and Alertmanager's /alerts.")
    ] = False,
    every: Annotated[float, typer.Option(help="With --watch: seconds between two looks.", min=0.1)] = 600.0,
    port: Annotated[int, typer.Option(help="With --watch: port of /metrics and /alerts.")] = 9110,
    params: Annotated[Path | None, typer.Option(help="Another params.yaml.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Compare the statistics of live streams with those of the champion's reference.

    Exits 0 if nothing has drifted, 1 if it has. With --watch and --retrain training starts when Alertmanager says so.
    """
    from voiceflow.adapters.stream_log import stream_log_at
    from voiceflow.stages.drift import describe

    if not statistics:
        raise ConfigError("--statistics (or $VOICEFLOW_STATISTICS) says where servers write statistics of streams")
    values = load_params(params)
    if schedule is not None:
        if not host:
            raise ConfigError("--schedule needs --host: the Kubeflow Pipelines that runs it")
        _schedule(host, schedule, values.drift, statistics)
        return
    config = values.drift if last is None else values.drift.model_copy(update={"window_streams": last})
    stream_log = stream_log_at(statistics)

    def look() -> dict[str, Any]:
        model, digest, normal = _reference(reference)
        since = 0.0 if hours is None else time.time() - 3600.0 * hours
        rows = stream_log.last(config.window_streams, since=since, digest=digest)
        return _compare(config, normal, rows, report, model=model, log=log and reference is None)

    if set_reference:
        _set_reference(config, stream_log)
        return
    command = _retraining(profile, host, data_repo, params)
    if watch:
        from voiceflow.adapters.drift_watch import watch_drift

        out.print(f"looking every {every:g} s; metrics and alerts on port {port}; stop with Ctrl-C")
        watch_drift(look, command if retrain else None, every_s=every, port=port, say=_say)
        return
    verdict = look()
    if pushgateway:
        from voiceflow.adapters.drift_watch import push

        push(pushgateway, verdict)
    if json_:
        emit_json(verdict)
    else:
        _show(verdict, report)
    if verdict["drifted"] and retrain:
        _say(f"training for {verdict['slice']['name']}: {describe(verdict)}")
        subprocess.run(command(verdict), check=False)
    if verdict["drifted"]:
        raise typer.Exit(1)


def _schedule(host: str, cron: str, config: DriftConfig, statistics: str) -> None:
    """A recurring run of the drift pipeline.

    Raises:
        PlatformError: Kubeflow Pipelines does not take it.
    """
    import importlib.resources

    from kfp.client import Client

    package = str(importlib.resources.files("pipelines").joinpath("drift.yaml"))
    try:
        client = Client(host=host)
        experiment = client.create_experiment("voiceflow")
        made = client.create_recurring_run(
            experiment.experiment_id,
            "voiceflow-drift",
            cron_expression=cron,
            max_concurrency=1,
            pipeline_package_path=package,
            params={"drift_json": config.model_dump_json(), "statistics": statistics},
        )
    except Exception as err:  # the client raises its own and urllib3's errors
        raise PlatformError(f"Kubeflow Pipelines at {host} did not take the recurring run: {err}") from err
    _say(f"recurring run {made.recurring_run_id} at {host}: {cron}")


def _say(sentence: str) -> None:
    out.print(sentence, markup=False, soft_wrap=True)
    sys.stdout.flush()


def _retraining(profile: str, host: str | None, data_repo: str | None, params: Path | None) -> Any:
    """The command that trains for a verdict's slice."""
    from voiceflow.stages.drift import describe

    def command(verdict: dict[str, Any]) -> list[str]:
        words = [sys.executable, "-m", "voiceflow.cli", "run", "--profile", profile]
        words += ["--for-slice", str(verdict["slice"]["name"]), "--reason", describe(verdict)]
        options = {"--host": host, "--data-repo": data_repo, "--params": params}
        for name, value in options.items():
            if value is not None:
                words += [name, str(value)]
        return words

    return command


def _reference(path: Path | None) -> tuple[str, str, list[dict[str, Any]]]:
    """Version and SHA-256 of the model, and statistics of the reference.

    Raises:
        DataError: There is none.
    """
    from voiceflow.adapters.references import champion_reference, read_reference

    if path is not None:
        return "", "", read_reference(path)
    return champion_reference()


def _set_reference(config: DriftConfig, stream_log: "StreamLog") -> None:
    """What the champion hears now is what is normal for it.

    Raises:
        DataError: No champion, or too few of its streams.
    """
    from voiceflow.adapters.references import find_champion, set_reference

    version, digest = find_champion()
    rows = [row for row in stream_log.last(MOST_NORMAL, digest=digest) if row["audio_s"] >= config.min_audio_s]
    if len(rows) < config.min_streams:
        raise DataError(f"expected {config.min_streams} streams or more for a reference, got {len(rows)}")
    set_reference(version, rows)
    _say(f"{len(rows)} streams are what is normal for version {version} from now on")


def _compare(
    config: DriftConfig,
    reference: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    report: Path,
    *,
    model: str,
    log: bool,
) -> dict[str, Any]:
    from voiceflow.adapters.drift_report import EvidentlyComparer
    from voiceflow.stages.drift import drift as run

    verdict = run(config, reference, rows, report, EvidentlyComparer(), model=model)
    if log and verdict["enough"]:
        from voiceflow.adapters.references import log_drift

        try:
            log_drift(verdict, report)
        except VoiceflowError as err:  # the verdict holds all the same
            _say(f"not logged: {err}")
    return verdict


def _show(verdict: dict[str, Any], report: Path) -> None:
    from rich.table import Table

    from voiceflow.stages.drift import PAGE, describe

    if verdict["columns"]:
        table = Table("statistic", "reference", "now", "distance", "p", "threshold", "")
        for row in verdict["columns"]:
            table.add_row(
                row["name"],
                f"{row['reference']:.3g}",
                f"{row['window']:.3g}",
                f"{row['distance']:.2f}",
                f"{row['p_value']:.1e}",
                f"{row['threshold']:.1e}",
                "[red]drifted[/red]" if row["drifted"] else "",
            )
        out.print(table)
        out.print(f"report: {report / PAGE}")
    _say(describe(verdict))
