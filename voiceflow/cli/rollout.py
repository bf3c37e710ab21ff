"""`voiceflow rollout`: a challenger gets more and more of the live streams, on evidence alone."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from voiceflow.cli.console import emit_json, err, error, out
from voiceflow.cli.registry import MANIFESTS, Apply, Commit, Environments, Manifests, Push, deployment_of, hand_on, who
from voiceflow.config import RolloutConfig, load_params

WATCH_S = 30.0
"""How often `--watch` asks whether there is a challenger."""


def rollout(
    version: Annotated[str | None, typer.Argument(help="The registered version to roll out; else @challenger.")] = None,
    split: Annotated[
        str | None,
        typer.Option(envvar="VOICEFLOW_SPLIT", help="File or redis:// address that servers read (serve --split)."),
    ] = None,
    prometheus: Annotated[
        str, typer.Option(envvar="VOICEFLOW_PROMETHEUS", help="Prometheus that scrapes the servers.")
    ] = "http://localhost:9090",
    selector: Annotated[
        str, typer.Option(help='Which series are of these servers, as in PromQL: namespace="voiceflow-production".')
    ] = "",
    bandit: Annotated[
        bool, typer.Option("--bandit", help="Shares by Thompson sampling instead of fixed steps.")
    ] = False,
    champion_uri: Annotated[
        str | None, typer.Option(help="Where servers find the champion, if not in MLflow: grpc://HOST:PORT, or a path.")
    ] = None,
    challenger_uri: Annotated[str | None, typer.Option(help="Where servers find the challenger, likewise.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a rollout that was held.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Begin anew with a challenger that was rolled back before.")
    ] = False,
    abort: Annotated[bool, typer.Option("--abort", help="Take all streams back to the champion, and end.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Print how it stands, and change nothing.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Wait for challengers, and roll out each; for a cluster.")
    ] = False,
    env: Environments = None,
    manifests: Manifests = MANIFESTS,
    commit: Commit = True,
    push: Push = None,
    apply: Apply = False,
    params: Annotated[Path | None, typer.Option(help="Another params.yaml.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON lines, one a look.")] = False,
) -> None:
    """Give a challenger 1, 5, 25, 50 and 100 % of new streams, or take them back, by what Prometheus sees.

    It decides by itself, writes down why, and goes on where it was if it is killed and started again. Exits 0 where
    the challenger became champion, 1 where it was rolled back or is held for somebody to decide.
    """
    from voiceflow.adapters.registry import MlflowRegistry
    from voiceflow.adapters.splits import notes_at
    from voiceflow.adapters.traffic import NotesJournal
    from voiceflow.errors import ConfigError, VoiceflowError

    if not split:
        raise ConfigError("expected --split, the file or redis:// address that servers read (`serve --split`)")
    config = load_params(params).rollout
    notes = notes_at(split)
    journal = NotesJournal(notes, stale_s=max(60.0, 6.0 * config.look_s))
    if status:
        _tell_status(journal.read(), config, json_=json_)
        return
    registry = MlflowRegistry()
    deployment = deployment_of(registry, manifests, env, commit=commit, push=push, apply=apply)

    def run(challenger: str) -> Any:
        return _run(
            registry,
            deployment,
            journal,
            notes,
            config,
            challenger,
            prometheus=(prometheus, selector),
            uris=(champion_uri, challenger_uri),
            bandit=bandit,
            resume=resume,
            again=again,
            abort=abort,
            json_=json_,
        )

    while watch:
        try:
            known, challenger = journal.read(), registry.version_of("challenger")
            is_done = known is not None and known.challenger == challenger and (known.is_settled or known.is_held)
            if challenger and not is_done and run(challenger).status == "promoted":
                hand_on(deployment, push=push, apply=apply)
        except VoiceflowError as problem:  # somebody else rolls out, or something is away for a while
            error(problem)
        time.sleep(WATCH_S)
    known = journal.read()
    under_way = known.challenger if known is not None and not known.is_settled else None
    challenger = version or under_way or registry.version_of("challenger")
    if challenger is None:
        raise ConfigError("there is no challenger to roll out; `voiceflow promote` makes one, see `voiceflow history`")
    ended = run(challenger)
    if ended.status == "promoted":
        hand_on(deployment, push=push, apply=apply)
    if ended.status != "promoted" and not abort:
        raise typer.Exit(1)


def _run(
    registry: Any,
    deployment: Any,
    journal: Any,
    notes: Any,
    config: RolloutConfig,
    challenger: str,
    *,
    prometheus: tuple[str, str],
    uris: tuple[str | None, str | None],
    bandit: bool,
    resume: bool,
    again: bool,
    abort: bool,
    json_: bool,
) -> Any:
    from voiceflow.adapters.prometheus import Prometheus
    from voiceflow.adapters.traffic import LiveTraffic, served_version
    from voiceflow.errors import ConfigError
    from voiceflow.stages.rollout import roll_back, roll_out

    journal.claim()
    known = journal.read()
    is_known = known is not None and known.challenger == challenger and not known.is_settled
    champion = known.champion if is_known else registry.version_of("champion")
    if champion is None:
        raise ConfigError("there is no champion to compare with; `voiceflow promote` makes the first one")
    if champion == challenger:
        raise ConfigError(f"version {challenger} is the champion already")
    url, selector = prometheus
    traffic = LiveTraffic(
        notes,
        Prometheus(url, selector=selector),
        registry,
        config,
        champion=served_version(registry, champion, uri=uris[0]),
        challenger=served_version(registry, challenger, uri=uris[1]),
        by=who(),
        deployment=deployment,
    )
    if abort:
        if not is_known:
            raise ConfigError("there is no rollout under way to abort; see --status")
        ended = roll_back(journal, traffic, known, f"aborted by {who()}")
    else:
        ended = roll_out(
            config,
            journal,
            traffic,
            champion=champion,
            challenger=challenger,
            policy="bandit" if bandit else "steps",
            resume=resume,
            again=again,
            tell=lambda now: _tell(now, config, json_=json_),
        )
    journal.release()
    if not json_:
        out.print(f"version {challenger}: {ended.status.replace('_', ' ')}: {ended.why}", markup=False, soft_wrap=True)
    return ended


def _tell(now: Any, config: RolloutConfig, *, json_: bool) -> None:
    if json_:
        print(json.dumps({"at": round(time.time(), 3), **_summary(now, config)}), flush=True)
        return
    seen = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in now.seen.items())
    moment = datetime.now().strftime("%H:%M:%S")
    at_step = f"look {now.looks}" if now.looks else "waiting for streams"
    err.print(f"{moment}  {now.weight(config):6.1%} of new streams  {at_step:20}  {seen}", markup=False, soft_wrap=True)


def _tell_status(known: Any, config: RolloutConfig, *, json_: bool) -> None:
    if json_:
        emit_json({} if known is None else _summary(known, config))
    elif known is None:
        out.print("no rollout so far")
    else:
        what = f"version {known.challenger} against {known.champion}: {known.status.replace('_', ' ')}"
        out.print(f"{what}, {known.weight(config):.1%} of new streams")
        for line in known.log or [known.why]:
            out.print(f"  {line}", markup=False, soft_wrap=True)


def _summary(now: Any, config: RolloutConfig) -> dict[str, Any]:
    plain: dict[str, Any] = now.model_dump(exclude={"measures"})
    return {**plain, "weight": now.weight(config)}
