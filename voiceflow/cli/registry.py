"""`voiceflow promote`, `rollback` and `history`: the model registry, and what it says should run."""

import getpass
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from voiceflow.cli.console import emit_json, out, percent, progress_bar
from voiceflow.cli.stages import DATASET, MODELS, REPORTS
from voiceflow.config import load_params

MANIFESTS = Path("manifests")

Environments = Annotated[
    list[str] | None, typer.Option("--env", help="Write the champion into this overlay; may be given several times.")
]
Manifests = Annotated[Path, typer.Option(help="Folder with overlays/.")]
Commit = Annotated[bool, typer.Option(help="Commit the change of the manifests.")]
Push = Annotated[str | None, typer.Option(metavar="BRANCH", help="Push that commit to this branch of origin.")]
Apply = Annotated[bool, typer.Option("--apply", help="kubectl apply the overlays.")]
SplitAt = Annotated[
    str | None,
    typer.Option("--split", envvar="VOICEFLOW_SPLIT", help="Tell servers that read it (serve --split) at once."),
]
VerifyKey = Annotated[
    Path | None,
    typer.Option(envvar="VOICEFLOW_VERIFY_KEY", help="Public key that a registered model must be signed for."),
]


def promote(
    candidate: Annotated[
        str | None,
        typer.Argument(
            help="A version, models:/voiceflow-diarizer@challenger, or a run id; else the files exported here."
        ),
    ] = None,
    accept_equal: Annotated[
        bool, typer.Option(help="Let a model that is not worse, but not better, be champion.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge, and change nothing.")] = False,
    env: Environments = None,
    manifests: Manifests = MANIFESTS,
    commit: Commit = True,
    push: Push = None,
    apply: Apply = False,
    sign_key: Annotated[
        Path | None, typer.Option(envvar="VOICEFLOW_SIGN_KEY", help="Private key to sign a new version with.")
    ] = None,
    verify_key: VerifyKey = None,
    split: SplitAt = None,
    dataset: Annotated[Path, typer.Option(help="The prepared dataset.")] = DATASET,
    models: Annotated[Path, typer.Option(help="Folder of trained and exported models.")] = MODELS,
    reports: Annotated[Path, typer.Option(help="Folder of reports.")] = REPORTS,
    params: Annotated[Path | None, typer.Option(help="Another params.yaml.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Judge a model beside the champion; if it passes, move aliases and write what should run.

    Exits 1 if a gate, a signature or the comparison refused it; then nothing was changed.
    """
    from voiceflow.adapters.bom import model_bom
    from voiceflow.adapters.candidates import find_candidate
    from voiceflow.adapters.registry import MlflowRegistry
    from voiceflow.adapters.signing import sign_folder, verify_folder
    from voiceflow.errors import SignatureError
    from voiceflow.stages.promote import log_entry
    from voiceflow.stages.promote import promote as run

    values = load_params(params)
    registry = MlflowRegistry()
    deployment = deployment_of(registry, manifests, env, commit=commit, push=push, apply=apply)
    found = find_candidate(registry, candidate, models=models, reports=reports)
    if verify_key is not None and (found.version is not None or sign_key is None):
        try:
            verify_folder(found.model.parent, verify_key)
        except SignatureError as err:
            champion = registry.version_of("champion") or ""
            registry.record(log_entry("refuse", champion, found.version or "", err.reason, by=who()))
            raise
    with progress_bar() as bar:
        task = bar.add_task("promote", total=4, visible=not json_)
        summary = run(
            values.promote,
            values.evaluate,
            found,
            dataset,
            reports / "promote",
            registry,
            by=who(),
            deployment=deployment,
            sign=None if sign_key is None else lambda folder: sign_folder(folder, sign_key),
            bill=lambda stated, der: model_bom(stated, der=der, licence="MIT"),
            accept_equal=accept_equal,
            dry_run=dry_run,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if summary["becomes"] == "champion" and not dry_run:
        hand_on(deployment, push=push, apply=apply)
        _tell_servers(split, registry, summary["version"])
    if json_:
        emit_json(summary)
    else:
        _print_promoted(summary, reports / "promote", dry_run=dry_run)
    if summary["becomes"] == "nothing":
        raise typer.Exit(1)


def rollback(
    to: Annotated[str | None, typer.Option(help="Version; else the champion before this one.")] = None,
    why: Annotated[str, typer.Option(help="Goes into the log.")] = "rolled back by hand",
    env: Environments = None,
    manifests: Manifests = MANIFESTS,
    commit: Commit = True,
    push: Push = None,
    apply: Apply = False,
    verify_key: VerifyKey = None,
    split: SplitAt = None,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="With --split: open streams of the other model change, and are told.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Make the previous champion champion again, in one step."""
    from voiceflow.adapters.registry import MlflowRegistry
    from voiceflow.adapters.signing import verify_folder
    from voiceflow.stages.promote import rollback as run

    registry = MlflowRegistry()
    deployment = deployment_of(registry, manifests, env, commit=commit, push=push, apply=apply)
    version = to or registry.version_of("previous")
    if verify_key is not None and version is not None:
        verify_folder(registry.download(version), verify_key)
    summary = run(registry, to=to, why=why, by=who(), deployment=deployment)
    hand_on(deployment, push=push, apply=apply)
    _tell_servers(split, registry, summary["champion"], withdrawn=summary["champion_before"] if withdraw else None)
    if json_:
        emit_json(summary)
    else:
        out.print(f"champion is version {summary['champion']} again; it was {summary['champion_before']}")


def history(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Versions of the model, and who moved what, when and why."""
    from rich.table import Table

    from voiceflow.adapters.registry import MlflowRegistry

    registry = MlflowRegistry()
    registry.recover()
    rows, log = registry.history(), registry.audit_log()
    if json_:
        emit_json({"versions": rows, "log": log})
        return
    table = Table("version", "aliases", "made", "DER", "model", "data", "commit", "signed")
    for row in rows:
        tags = row["tags"]
        der = json.loads(tags.get("der", "{}")).get("overall")
        table.add_row(
            row["version"],
            ", ".join(row["aliases"]),
            datetime.fromtimestamp(row["created_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
            "" if der is None else percent(der),
            tags.get("model_version", ""),
            tags.get("data_revision", "")[:12],
            tags.get("git_commit", "")[:12],
            "yes" if tags.get("signed") == "true" else "",
        )
    out.print(table)
    for entry in log:
        what = entry["action"] + (f" to {entry['becomes']}" if "becomes" in entry else "")
        versions = " -> ".join(version for version in (entry["from"], entry["to"]) if version)
        line = f"{entry['when']}  {what} {versions}  by {entry['by']}: {entry['why']}"
        out.print(line, markup=False, soft_wrap=True)


def who() -> str:
    """Who does it: the account, or the person who made CI do it."""
    return os.environ.get("GITHUB_ACTOR") or f"{getpass.getuser()}@{socket.gethostname()}"


def deployment_of(
    registry: Any, manifests: Path, env: list[str] | None, *, commit: bool, push: str | None, apply: bool
) -> Any:
    """Where it is written down what runs; None without `--env`."""
    from voiceflow.adapters.gitops import Overlays
    from voiceflow.errors import ConfigError

    if not env:
        if push or apply:
            raise ConfigError("--push and --apply need --env: which overlay should run the champion")
        return None
    if push and not commit:
        raise ConfigError("--push needs a commit; leave --no-commit out")
    return Overlays(manifests, env, registry.storage_uri, commit=commit)


def _tell_servers(split: str | None, registry: Any, version: str, *, withdrawn: str | None = None) -> None:
    if split:
        from voiceflow.adapters.splits import notes_at
        from voiceflow.adapters.traffic import point_split

        point_split(notes_at(split), registry, version, withdrawn=withdrawn or None)


def hand_on(deployment: Any, *, push: str | None, apply: bool) -> None:
    """Push and apply what was written down, where that is wanted."""
    if deployment is not None and push:
        deployment.push(push)
    if deployment is not None and apply:
        deployment.apply()


def _print_promoted(summary: dict[str, Any], folder: Path, *, dry_run: bool) -> None:
    for gate in summary["gates"]:
        verdict = "[green]passed[/green]" if gate["passed"] else "[red]refused[/red]"
        out.print(f"  {gate['gate']:12} {verdict}  ", end="")
        out.print("; ".join(gate["reasons"]), markup=False)
    named = f"version {summary['version']}" if summary["version"] else f"the file {summary['digest'][:12]}"
    would = "would become" if dry_run else "becomes"
    out.print(f"{named} {would} {summary['becomes']}; champion is version {summary['champion']}")
    for reason in summary["reasons"]:
        out.print(f"  {reason}", markup=False)
    if (folder / "card.md").is_file() and summary["slices"]:
        out.print(f"card: {folder / 'card.md'}", markup=False)
