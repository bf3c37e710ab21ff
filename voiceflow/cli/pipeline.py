"""`voiceflow run`: the training pipeline, here with kfp.local or on a Kubeflow endpoint."""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import voiceflow
from voiceflow.cli.console import emit_json, out, percent, progress_bar
from voiceflow.config import Params, load_params
from voiceflow.errors import ConfigError, PlatformError

HISTORY = "runs.jsonl"
"""Below the pipelines' folder: what finished steps depended on."""
SECTIONS = ("prepare", "validate", "train", "evaluate", "export", "latency", "promote")
STAGES = ("prepare", "join", "validate", "train", "evaluate", "export", "latency", "promote")
ADVICE = "what to do: mend that and run the command again; steps that have ended well are not run again"
"""Where a step that failed does not say it itself."""


def run(
    profile: Annotated[str, typer.Option(help="quick (trains on for minutes) or full, as in params.yaml.")] = "quick",
    from_scratch: Annotated[bool, typer.Option(help="Start from random weights.")] = False,
    accept_equal: Annotated[
        bool, typer.Option(help="Let a model that is not worse, but not better, be champion.")
    ] = False,
    provider: Annotated[str, typer.Option(help="Where the latency step runs: cpu, cuda or tensorrt.")] = "cpu",
    host: Annotated[str | None, typer.Option(help="Submit to this Kubeflow Pipelines endpoint instead.")] = None,
    data_repo: Annotated[
        str | None, typer.Option(help="With --host: git URL of the repository that tracks the data.")
    ] = None,
    data_rev: Annotated[
        str, typer.Option(help="Git revision whose .dvc files name the data; empty: working tree.")
    ] = "",
    explain_cache: Annotated[
        bool, typer.Option("--explain-cache", help="Only say which steps would be reused, and why others run.")
    ] = False,
    for_slice: Annotated[
        str | None, typer.Option(help="Train for this condition: it is drawn drift.more_of_slice times as often.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why this run was started; a tag of its MLflow run.")] = "",
    corpus: Annotated[str | None, typer.Option(help="Tracked folder of voices, instead of prepare.corpus.")] = None,
    recorded: Annotated[
        str | None, typer.Option(help="Tracked folder of conversations, instead of prepare.recorded.")
    ] = None,
    noises: Annotated[
        str | None, typer.Option(help="Tracked folder of recordings without speech, instead of prepare.noises.")
    ] = None,
    rooms: Annotated[
        str | None, typer.Option(help="Tracked folder of impulse responses, instead of prepare.rooms.")
    ] = None,
    shards: Annotated[
        int, typer.Option(help="Parts that conversations are made in, each by a pod of its own with --host.", min=1)
    ] = 1,
    params: Annotated[Path | None, typer.Option(help="Another params.yaml.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run the training pipeline: prepare, join, validate, train, evaluate, export, latency, promote.

    Exits 0 if the model was promoted, 1 if a gate or the comparison refused it.
    """
    from voiceflow.adapters.data_versions import code_revision, data_commit, ensure_data, revision_of, tracked_folders

    values = load_params(params, profile=profile)
    if from_scratch:
        values = values.model_copy(update={"train": values.train.model_copy(update={"init_from": "scratch"})})
    asked = {"corpus": corpus, "recorded": recorded, "noises": noises, "rooms": rooms}
    chosen = {name: path for name, path in asked.items() if path is not None}
    values = values.model_copy(update={"prepare": values.prepare.model_copy(update=chosen)})
    if for_slice is not None:
        values = more_of(values, for_slice)
        reason = reason or f"for slice {for_slice}"
    target = "cpu" if provider == "cpu" else "t4"
    values = values.model_copy(update={"promote": values.promote.model_copy(update={"target_device": target})})
    if host:
        if explain_cache:
            raise ConfigError("--explain-cache tells of runs on this machine; leave --host out")
        if not data_repo:
            raise ConfigError("--host needs --data-repo: pods fetch the data from a git repository that they can reach")
        folders = tracked_folders(values.prepare)
        arguments = _arguments(values, data_repo, folders, shards, provider, accept_equal)
        arguments |= {
            "data_rev": data_rev or data_commit(folders),
            "data_revision": revision_of(folders),
            "code_revision": code_revision(),
            "reason": reason,
        }
        _submit(host, arguments)
        return
    version = ensure_data(values.prepare, (lambda sentence: None) if json_ else out.print)
    arguments = _arguments(values, str(Path.cwd()), version.folders, shards, provider, accept_equal)
    arguments |= {
        "data_rev": data_rev,
        "data_revision": version.revision,
        "code_revision": code_revision(),
        "reason": reason,
    }
    if explain_cache:
        _explain(arguments, json_=json_)
        return
    summary = run_locally(arguments, quiet=json_)
    if json_:
        emit_json(summary)
    else:
        print_summary(summary)
    if summary["promote"]["becomes"] == "nothing":
        raise typer.Exit(1)


def _explain(arguments: dict[str, Any], *, json_: bool) -> None:
    from rich.table import Table

    from voiceflow.adapters.home import home
    from voiceflow.cli.explain import explain, read_history

    told = explain(arguments, read_history(home() / "pipelines" / HISTORY))
    if json_:
        emit_json(told)
        return
    table = Table("step", "what becomes of it")
    for name, what in told.items():
        table.add_row(name, f"[green]{what}[/green]" if what == "reused" else escape(what))
    out.print(table)


def more_of(values: Params, condition: str) -> Params:
    """Params whose training draws a condition more often; of none that is known, as they are."""
    weights = values.prepare.conditions.model_dump()
    if condition not in weights:
        out.print(f"no condition {condition!r} to draw more of ({', '.join(weights)}): training as usual", markup=False)
        return values
    largest = max(weights.values())
    weights[condition] = values.drift.more_of_slice * (weights[condition] or largest)
    conditions = values.prepare.conditions.model_validate(weights)
    return values.model_copy(update={"prepare": values.prepare.model_copy(update={"conditions": conditions})})


def _arguments(
    values: Params, data_repo: str, folders: Mapping[str, str], shards: int, provider: str, accept_equal: bool
) -> dict[str, Any]:
    from voiceflow.adapters.data_versions import PLACES

    sections = {
        name: getattr(values, f"{name}_" if name == "validate" else name) for name in (*SECTIONS, "model", "decision")
    }
    return {f"{name}_json": section.model_dump_json() for name, section in sections.items()} | {
        "data_repo": data_repo,
        **{name: folders.get(name, "") for name in PLACES},
        "shards": list(range(shards)),
        "num_shards": shards,
        "provider": provider,
        "accept_equal": accept_equal,
        "version": voiceflow.__version__,
    }


def _submit(host: str, arguments: dict[str, Any]) -> None:
    import importlib.resources

    from kfp.client import Client

    package = str(importlib.resources.files("pipelines").joinpath("training.yaml"))
    try:
        submitted = Client(host=host).create_run_from_pipeline_package(
            package, arguments=arguments, experiment_name="voiceflow"
        )
    except Exception as err:  # the client raises its own and urllib3's errors
        raise PlatformError(f"Kubeflow Pipelines at {host} did not take the run: {err}") from err
    out.print(f"submitted run {submitted.run_id} to {host}")


def run_locally(arguments: dict[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """Run the pipeline with kfp.local and return what `promote` judged and which steps were reused.

    Raises:
        PlatformError: A step failed; names the step, its last words and the log.
    """
    from voiceflow.adapters.data_versions import git_commit
    from voiceflow.adapters.home import home, tracking_uri
    from voiceflow.adapters.progress import VARIABLE
    from voiceflow.cli.explain import note_run

    root = home() / "pipelines"
    root.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    log, events = root / f"run-{stamp}.log", root / f"run-{stamp}.progress.jsonl"
    events.touch()
    os.environ[VARIABLE] = str(events)
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri()
    # Steps run elsewhere and cannot ask git; nor is it an argument, or each commit would run them all again.
    os.environ["VOICEFLOW_GIT_COMMIT"] = git_commit()
    # Components import the package from the same place as this command.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(voiceflow.__file__).parent.parent), os.environ.get("PYTHONPATH")])
    )
    os.environ["PYTHONWARNINGS"] = "ignore"
    last = home() / "last-run.json"
    last.unlink(missing_ok=True)
    started = time.monotonic()
    failure: Exception | None = None
    with _quietly(log) as terminal, _progress(events, terminal, show=not quiet):
        try:
            import warnings

            warnings.simplefilter("ignore")
            from kfp import local

            from pipelines.training import training

            local.init(
                runner=local.SubprocessRunner(use_venv=False),
                pipeline_root=str(root / "outputs"),
                raise_on_error=True,
                enable_caching=True,
                cache_root=str(root / "cache"),
            )
            training(**arguments)
        except Exception as err:  # kfp raises RuntimeError, and whatever its runner meets
            failure = err
    happened = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    ran = list(dict.fromkeys(event["stage"] for event in happened if event["event"] == "start"))
    # Steps run one after another: what comes before the one that failed has ended well.
    last_begun = STAGES.index(ran[-1]) if ran else 0
    note_run(root / HISTORY, arguments, STAGES if failure is None else STAGES[:last_begun])
    if failure is not None:
        failed = ran[-1] if ran else STAGES[0]
        words = _last_words(log) or str(failure)
        advice = "" if "what to do:" in words else f"\n{ADVICE}"
        raise PlatformError(f"step {failed} failed: {words}\nfull log: {log}{advice}")
    folder = next(Path(e["folder"]) for e in happened if e["stage"] == "promote" and e["event"] == "result")
    reports = {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("promote", "evaluate", "export", "latency")
    }
    summary = {
        **reports,
        "reused": [name for name in STAGES if name not in ran],
        "elapsed_s": round(time.monotonic() - started, 1),
        "log": str(log),
        "reports": str(folder),
        "dataset": str(_dataset(folder)),
        "tracking_uri": tracking_uri(),
    }
    # Its presence tells that the pipeline came to a verdict, whatever that was.
    last.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _dataset(promoted: Path) -> Path:
    """The dataset that a run was judged on, from what promote noted of its inputs."""
    return Path(json.loads((promoted / "inputs.json").read_text(encoding="utf-8"))["dataset"])


@contextlib.contextmanager
def _quietly(log: Path) -> Iterator[Console]:
    """Send all that this process and its children print to the log; yields a console on the real terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    with log.open("ab") as file, os.fdopen(os.dup(saved_err), "w") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Console(file=terminal, force_terminal=os.isatty(saved_err), highlight=False)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved_out, 1)
            os.dup2(saved_err, 2)
            os.close(saved_out)
            os.close(saved_err)


@contextlib.contextmanager
def _progress(events: Path, console: Console, *, show: bool) -> Iterator[None]:
    """Follow the events of stages and show them as bars (a line a stage where there is no terminal)."""
    if not show:
        yield
        return
    stop = threading.Event()

    def follow() -> None:
        with events.open(encoding="utf-8") as file, progress_bar(console) as bar:
            tasks: dict[str, Any] = {}
            while True:
                ending = stop.is_set()
                for line in file.readlines():
                    event = json.loads(line)
                    stage = event["stage"]
                    if event["event"] == "start":
                        tasks[stage] = bar.add_task(f"{stage:9}", total=None)
                        if not console.is_terminal:
                            console.print(f"{time.strftime('%H:%M:%S')} {stage}")
                    elif event["event"] == "progress":
                        shown = f"{stage:9} {event['what']}"
                        bar.update(tasks[stage], description=shown, completed=event["done"], total=event["total"])
                if ending:
                    return
                stop.wait(0.2)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _last_words(log: Path) -> str:
    """The last exception line in the log: what the failed step said."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number].strip()
        if "voiceflow.errors." in line and "Error" in line:
            words = [line[line.index("voiceflow.errors.") :].split(":", 1)[-1].strip()]
            for follower in lines[number + 1 :]:
                text = follower.strip()
                if not text.startswith(("- ", "full report", "what to do")):
                    break
                words.append(f"  {text}")
            return "\n".join(words)
    errors = [line.strip() for line in lines if "Error: " in line]
    return errors[-1] if errors else ""


def print_summary(summary: dict[str, Any]) -> None:
    """What a run decided, for people."""
    from rich.table import Table

    promote, evaluate, latency = summary["promote"], summary["evaluate"], summary["latency"]
    table = Table(title="pipeline summary", show_header=False)
    test = evaluate["test"]["overall"]
    table.add_row("DER, held-out speakers", f"{percent(test['der'])} strict at {evaluate['latency_s']} s latency")
    if evaluate["recorded"]:
        table.add_row("DER, recorded", percent(evaluate["recorded"]["overall"]["der"]))
    if promote["der"]:
        table.add_row("DER, champion before", percent(promote["der"]["champion"]))
    batches = latency["batches"]
    shown = ", ".join(f"batch {batch} p99 {row['p99_ms']:.2f} ms" for batch, row in batches.items())
    table.add_row("latency of a step", f"{shown} on {latency['device_name']}")
    table.add_row("streams a core", f"{latency['streams_per_core']:.0f} in real time, model alone")
    for gate in promote["gates"]:
        table.add_row(
            f"gate {gate['gate']}", "passed" if gate["passed"] else "[red]refused[/red]: " + "; ".join(gate["reasons"])
        )
    outcome = {"champion": "[green]champion[/green]", "challenger": "challenger", "nothing": "[red]not promoted[/red]"}
    table.add_row("verdict", f"{outcome[promote['becomes']]}: " + "; ".join(promote["reasons"]))
    table.add_row("champion", f"version {promote['champion']}")
    reused = summary["reused"]
    table.add_row("steps reused from cache", ", ".join(reused) if reused else "none")
    table.add_row("time", f"{summary['elapsed_s']:.0f} s")
    table.add_row("reports", summary["reports"])
    table.add_row("log", summary["log"])
    table.add_row("MLflow", f"mlflow ui --backend-store-uri {summary['tracking_uri']}")
    out.print(table)
