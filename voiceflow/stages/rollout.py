"""rollout: gives a challenger more and more of the streams, holds, or takes them back, on evidence alone.

Everything is decided by `look`, a pure function of what was seen; `roll_out` is the loop around it. Its state is
written down before anything is done, so that one that was killed goes on where it was.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from voiceflow.config import RolloutConfig, Section
from voiceflow.sequential import Arm, Wager, thompson_shares

Status = Literal["running", "held", "promoted", "rolled_back"]
Policy = Literal["steps", "bandit"]


CROSS_DER = "cross_der"
SMALL_SHARE = 0.2
"""Of the challenger's streams: fewer of the champion's say little, and what is usual of it is taken instead."""
USUAL_RATE = 0.1
"""At which a look changes what is usual."""


@dataclass(frozen=True)
class Seen:
    """One variant since the last look."""

    streams: float
    """Open on average."""
    errors: float
    """Share of its streams that it lost."""
    late: float
    """Share of its answers that came later than `late_ms`."""
    flips_per_minute: float
    """Of a stream."""


@dataclass(frozen=True)
class Window:
    """What came since the last look."""

    champion: Seen
    challenger: Seen
    cross_der: float | None = None
    """Of shadowed streams; None where there were none."""
    is_down: bool = False
    """Whether the challenger cannot be loaded, or lost all its streams."""


class Measure(Section):
    """The evidence on one measure: for being worse, since the rollout began; for being fine, since the step did."""

    worse: dict[str, Any]
    fine: dict[str, Any]


class Rollout(Section):
    """A rollout as it is written down."""

    champion: str
    challenger: str
    """Versions."""
    policy: Policy = "steps"
    step: int = 0
    share: float = 0.0
    """Of new streams, by the bandit."""
    arms: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """What each variant has earned and missed, by the bandit."""
    looks: int = 0
    """That said something, at this step."""
    empty_looks: int = 0
    status: Status = "running"
    why: str = ""
    measures: dict[str, Measure] = Field(default_factory=dict)
    log: list[str] = Field(default_factory=list)
    is_settled: bool = False
    """Whether what its end asks for has been done."""

    seen: dict[str, str] = Field(default_factory=dict)
    """The last look, for people."""
    usual: dict[str, float] | None = None
    """What is usual of the champion."""

    @property
    def is_held(self) -> bool:
        """Whether it waits for somebody to decide."""
        return self.status == "held"

    def weight(self, config: RolloutConfig) -> float:
        """Share of new streams that the challenger is to have."""
        match self.status:
            case "rolled_back":
                return 0.0
            case "promoted":
                return 1.0
            case _ if self.policy == "bandit":
                return min(max(self.share, config.bandit_floor), 1.0 - config.bandit_floor)
            case _:
                return config.steps[self.step]


def look(rollout: Rollout, window: Window, config: RolloutConfig) -> Rollout:
    """What becomes of a rollout after one more look.

    Args:
        rollout: As it was; one that has ended stays as it is.
        window: What was seen.
        config: Steps, margins and chances of error.

    Returns:
        As it is now: its status, and why.
    """
    if rollout.status in ("promoted", "rolled_back"):
        return rollout
    if window.is_down:
        return _ended(rollout, "rolled_back", "the challenger is down")
    if window.challenger.streams < config.min_streams:
        held = rollout.empty_looks + 1 >= config.max_looks
        why = "too few streams came to the challenger to say anything" if held else rollout.why
        return rollout.model_copy(
            update={
                "empty_looks": rollout.empty_looks + 1,
                "status": "held" if held else rollout.status,
                "why": why,
            }
        )
    champion = _compared_with(rollout, window, config)
    values = _differences(window, champion)
    told = {
        name: f"{scale * value:+.1f} {unit}"
        for name, (_, _, _, unit, scale) in _bounds(config).items()
        if (value := values[name]) is not None
    }
    measures: dict[str, Measure] = {}
    proved_worse, unproved = [], []
    for name, (margin, low, high, unit, scale) in _bounds(config).items():
        before = rollout.measures.get(name)
        worse = Wager(**before.worse) if before else Wager(margin, "above", low, high)
        fine = Wager(**before.fine) if before else Wager(margin, "below", low, high)
        value = values[name]
        if value is not None:
            worse.see(value)
            fine.see(value)
            if worse.is_won(config.false_alarm):
                proved_worse.append(
                    f"{name.replace('_', ' ')} {scale * value:+.1f} {unit} in the last look, and beyond "
                    f"{scale * margin:.1f} {unit} with confidence {1 - config.false_alarm:.0%}"
                )
        if not fine.is_won(config.false_advance):
            unproved.append(name.replace("_", " "))
        measures[name] = Measure(worse=worse.as_dict(), fine=fine.as_dict())
    now = rollout.model_copy(
        update={
            "measures": measures,
            "looks": rollout.looks + 1,
            "empty_looks": 0,
            "status": "running",
            "usual": _usual(rollout.usual, champion),
            "seen": {"streams": f"{window.challenger.streams:.0f}", **told},
        }
    )
    if proved_worse:
        return _ended(now, "rolled_back", "; ".join(proved_worse))
    if now.policy == "bandit":
        now = _shared(now, window, config)
        if now.looks >= config.min_looks and now.share >= config.bandit_sure:
            return _ended(now, "promoted", f"the better one with probability {now.share:.0%} after {now.looks} looks")
        if now.looks >= config.min_looks and now.share <= 1.0 - config.bandit_sure:
            return _ended(now, "rolled_back", f"the better one with probability {now.share:.0%} only")
    elif not unproved and now.looks >= config.min_looks:
        return _advanced(now, config)
    if now.looks >= config.max_looks:
        why = (
            f"neither worse nor fine after {now.looks} looks at {now.weight(config):.0%} "
            f"({', '.join(unproved) or 'alike'}); held for you to decide"
        )
        return now.model_copy(update={"status": "held", "why": why})
    return now


def _shared(rollout: Rollout, window: Window, config: RolloutConfig) -> Rollout:
    """The bandit's look: what both earned, and how likely the challenger is the better one."""
    arms = {}
    for name, seen in (("champion", window.champion), ("challenger", window.challenger)):
        arm = Arm(*rollout.arms.get(name, (1.0, 1.0)))
        cost = config.reward
        lost = cost.errors * seen.errors + cost.late_answers * seen.late + cost.flips_per_minute * seen.flips_per_minute
        arm.see(1.0 - lost)
        arms[name] = arm
    share = thompson_shares(arms, seed=rollout.looks)["challenger"]
    update = {"share": share, "arms": {name: (arm.wins, arm.losses) for name, arm in arms.items()}}
    return rollout.model_copy(update=update)


def _compared_with(rollout: Rollout, window: Window, config: RolloutConfig) -> Seen:
    """The champion in this look; as it was before, where hardly anybody has it any more."""
    now, known = window.champion, rollout.usual
    is_enough = now.streams >= max(config.min_streams, SMALL_SHARE * window.challenger.streams)
    return now if is_enough or known is None else Seen(**known)


def _usual(known: dict[str, float] | None, seen: Seen) -> dict[str, float]:
    """What is usual of the champion: a running mean."""
    now = asdict(seen)
    return now if known is None else {name: value + USUAL_RATE * (now[name] - value) for name, value in known.items()}


def _differences(window: Window, champion: Seen) -> dict[str, float | None]:
    now = window.challenger
    return {
        "errors": now.errors - champion.errors,
        "late_answers": now.late - champion.late,
        "flips": now.flips_per_minute - champion.flips_per_minute,
        CROSS_DER: window.cross_der,
    }


def _bounds(config: RolloutConfig) -> dict[str, tuple[float, float, float, str, float]]:
    """Margin, least and greatest value, unit and what makes it of the number, by measure.

    A look that is worse than the greatest value counts as that: what is proved sooner about less extreme looks.
    """
    return {
        "errors": (config.max_errors, -4 * config.max_errors, 4 * config.max_errors, "points", 100.0),
        "late_answers": (config.max_late, -4 * config.max_late, 4 * config.max_late, "points", 100.0),
        "flips": (
            config.max_flips_per_minute,
            -3 * config.max_flips_per_minute,
            3 * config.max_flips_per_minute,
            "a minute",
            1.0,
        ),
        **(
            {CROSS_DER: (config.max_cross_der, 0.0, (1.0 + config.max_cross_der) / 2.0, "points", 100.0)}
            if config.shadow
            else {}
        ),
    }


def _advanced(rollout: Rollout, config: RolloutConfig) -> Rollout:
    share = config.steps[rollout.step]
    if rollout.step + 1 == len(config.steps):
        return _ended(rollout, "promoted", f"within every margin at {share:.0%} after {rollout.looks} looks")
    onward = config.steps[rollout.step + 1]
    why = f"within every margin at {share:.0%} after {rollout.looks} looks: on to {onward:.0%}"
    bounds = _bounds(config)
    # How far both differ on the same audio has nothing to do with the step; with all streams, there is none to compare.
    fresh = {
        name: measure
        if name == CROSS_DER
        else Measure(worse=measure.worse, fine=Wager(bounds[name][0], "below", *bounds[name][1:3]).as_dict())
        for name, measure in rollout.measures.items()
    }
    changes = {"step": rollout.step + 1, "looks": 0, "why": why, "measures": fresh, "log": [*rollout.log, why]}
    return rollout.model_copy(update=changes)


def _ended(rollout: Rollout, status: Status, why: str) -> Rollout:
    return rollout.model_copy(update={"status": status, "why": why, "log": [*rollout.log, f"{status}: {why}"]})


class Journal(Protocol):
    """Where a rollout is written down."""

    def read(self) -> Rollout | None:
        """The one under way, or that ended last."""
        ...

    def write(self, rollout: Rollout) -> None:
        """Write it down, whole or not at all."""
        ...


class Traffic(Protocol):
    """What serves."""

    def give(self, weight: float) -> None:
        """Share of new streams for the challenger; the same again does nothing."""
        ...

    def see(self) -> Window:
        """What came since it was asked last; waits for `look_s`."""
        ...

    def called_off(self) -> str:
        """Why it must end at once: somebody wants it so, or there is another champion; else nothing."""
        ...

    def end(self, rollout: Rollout) -> None:
        """It has ended: the challenger is champion now, or its streams go back to the champion. Again does nothing."""
        ...


def roll_out(
    config: RolloutConfig,
    journal: Journal,
    traffic: Traffic,
    *,
    champion: str,
    challenger: str,
    policy: Policy = "steps",
    resume: bool = False,
    again: bool = False,
    tell: Callable[[Rollout], None] = lambda rollout: None,
) -> Rollout:
    """Carry a rollout to its end, from its beginning or from where one that was killed had come.

    Args:
        config: Steps, margins and chances of error.
        journal: Where it is written down.
        traffic: What serves.
        champion: Version that serves now.
        challenger: Version that is to.
        policy: Fixed steps, or shares by a bandit.
        resume: Go on with one that was held, at the step where it was.
        again: Begin anew with a challenger whose rollout has ended.
        tell: Called after every look.

    Returns:
        How it ended: promoted, rolled back, or held.
    """
    known = journal.read()
    same = known is not None and (known.champion, known.challenger) == (champion, challenger)
    same = same and not (again and known is not None and known.is_settled)
    if known is not None and same and known.is_held and resume:
        known = known.model_copy(update={"status": "running", "looks": 0, "empty_looks": 0})
    rollout = known if known is not None and same else Rollout(champion=champion, challenger=challenger, policy=policy)
    journal.write(rollout)
    while rollout.status == "running":
        if why := traffic.called_off():
            return roll_back(journal, traffic, rollout, why)
        traffic.give(rollout.weight(config))
        window = traffic.see()
        if why := traffic.called_off():
            return roll_back(journal, traffic, rollout, why)
        rollout = look(rollout, window, config)
        # First written, then done: whoever goes on after a crash does it again, to the same end.
        journal.write(rollout)
        tell(rollout)
    if rollout.status == "held":
        traffic.give(rollout.weight(config))
    elif not rollout.is_settled:
        traffic.end(rollout)
        rollout = rollout.model_copy(update={"is_settled": True})
        journal.write(rollout)
    return rollout


def roll_back(journal: Journal, traffic: Traffic, rollout: Rollout, why: str) -> Rollout:
    """End a rollout because somebody wants it so."""
    ended = _ended(rollout, "rolled_back", why)
    journal.write(ended)
    traffic.end(ended)
    ended = ended.model_copy(update={"is_settled": True})
    journal.write(ended)
    return ended
