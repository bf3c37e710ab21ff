"""`voiceflow rollout`: a challenger gets more and more of the live streams, on evidence alone."""

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from voiceflow.cli.console import emit_json, err, error, out
from voiceflow.cli.registry import MANIFESTS, Apply, Commit, Environments, Manifests, Push, deployment_of, hand_on, who
from voiceflow.config import RolloutConfig, load_params

CALL_OFF_S = 30.0
"""So long, and two looks, another controller has to end a rollout that was called off."""
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
    look: Annotated[
        float | None,
        typer.Option(help="Seconds between two looks, else rollout.look_s; four scrapes or more.", min=0.1),
    ] = None,
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
    if look is not None:
        config = config.model_copy(update={"look_s": look})
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
            hand_on=lambda: hand_on(deployment, push=push, apply=apply),
            bandit=bandit,
            resume=resume,
            again=again,
            abort=abort,
            json_=json_,
        )

    while watch:
        try:
            known, challenger = journal.read(), registry.version_of("challenger")
            if known is not None and not (known.is_settled or known.is_held):
                run(known.challenger)  # also where its alias has moved on already
            elif challenger and (known is None or known.challenger != challenger):
                run(challenger)
        except VoiceflowError as problem:  # somebody else rolls out, or something is away for a while
            error(problem)
        time.sleep(WATCH_S)
    known = journal.read()
    under_way = known.challenger if known is not None and not known.is_settled else None
    challenger = version or under_way or registry.version_of("challenger")
    if challenger is None:
        raise ConfigError("there is no challenger to roll out; `voiceflow promote` makes one, see `voiceflow history`")
    ended = run(challenger)
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
    hand_on: Callable[[], None],
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

    known = journal.read()
    if abort and journal.other:
        return _call_off(journal, config)
    journal.claim()
    try:
        is_known = known is not None and known.challenger == challenger and not known.is_settled
        champion = known.champion if is_known else registry.version_of("champion")
        if champion is None:
            raise ConfigError("there is no champion to compare with; `voiceflow promote` makes the first one")
        if champion == challenger:
            raise ConfigError(f"version {challenger} is the champion already")
        url, selector = prometheus
        ends = [served_version(registry, *pair) for pair in zip((champion, challenger), uris, strict=True)]
        if ends[0].key == ends[1].key:
            raise ConfigError(f"versions {champion} and {challenger} are the same file: there is nothing to compare")
        traffic = LiveTraffic(
            notes,
            journal,
            Prometheus(url, selector=selector),
            registry,
            config,
            champion=ends[0],
            challenger=ends[1],
            by=who(),
            deployment=deployment,
            hand_on=hand_on,
        )
        if not abort:
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
        elif not is_known:
            raise ConfigError("there is no rollout under way to abort; see --status")
        elif known.status == "promoted":
            raise ConfigError(
                "it is promoted already: `voiceflow rollout` finishes that, `voiceflow rollback` undoes it"
            )
        else:
            ended = roll_back(journal, traffic, known, f"aborted by {who()}")
    finally:
        journal.release()
    if not json_:
        out.print(f"version {challenger}: {ended.status.replace('_', ' ')}: {ended.why}", markup=False, soft_wrap=True)
    return ended


def _call_off(journal: Any, config: RolloutConfig) -> Any:
    """Let the controller that is at it take all streams back; how it ended."""
    from voiceflow.errors import PlatformError

    known = journal.read()
    journal.call_off(known.challenger, f"aborted by {who()}")
    deadline_s = time.monotonic() + CALL_OFF_S + 2.0 * config.look_s
    while time.monotonic() < deadline_s:
        time.sleep(1.0)
        known = journal.read()
        if known.is_settled:
            out.print(f"version {known.challenger}: {known.status.replace('_', ' ')}: {known.why}", soft_wrap=True)
            return known
    raise PlatformError(f"{journal.other} was told to take all streams back and has not done so yet; see --status")


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
