from dataclasses import replace

import numpy as np
import pytest

from voiceflow.stages.rollout import Rollout, Seen, Window, look, roll_back, roll_out


class Simulated:
    """Traffic whose challenger is as bad as told; counts how often it was shown to anybody."""

    def __init__(self, *, late=0.0, errors=0.0, flips=0.0, cross_der=0.1, seed=0, die_at=None):
        self.bad = {"late": late, "errors": errors, "flips": flips, "cross_der": cross_der}
        self.rng = np.random.default_rng(seed)
        self.weights, self.looks, self.ends, self.die_at = [], 0, [], die_at
        self.champion_late, self.called_off_at = 0.02, None

    def give(self, weight):
        self.weights.append(weight)

    def see(self):
        self.looks += 1
        if self.looks == self.die_at:
            raise KeyboardInterrupt
        noise = self.rng.normal(0, 0.01, 6)

        def share(value):
            return float(np.clip(value, 0.0, 1.0))

        champion = Seen(300, share(noise[0] / 10), share(self.champion_late + noise[1]), max(0.0, 1.4 + 20 * noise[2]))
        challenger = Seen(
            300 * self.weights[-1],
            share(self.bad["errors"] + noise[3] / 10),
            share(0.02 + self.bad["late"] + noise[4]),
            max(0.0, 1.4 + self.bad["flips"] + 20 * noise[5]),
        )
        if self.weights[-1] == 1.0:  # hardly anybody has the champion, and nobody's audio goes to both
            return Window(Seen(0.5, 0.0, 1.0, 600.0), challenger, None)
        return Window(champion, challenger, share(self.bad["cross_der"] + noise[0]))

    def called_off(self):
        return "somebody called it off" if self.looks == self.called_off_at else ""

    def end(self, rollout):
        self.ends.append(rollout.status)


class Memory:
    def __init__(self):
        self.text = None

    def read(self):
        return None if self.text is None else Rollout.model_validate_json(self.text)

    def write(self, rollout):
        self.text = rollout.model_dump_json()


def run(params, traffic, journal=None):
    return roll_out(params.rollout, journal or Memory(), traffic, champion="1", challenger="2")


def test_a_good_challenger_goes_to_all_streams_step_by_step(params):
    traffic = Simulated()
    ended = run(params, traffic)
    assert ended.status == "promoted", ended.why
    assert list(dict.fromkeys(traffic.weights)) == params.rollout.steps
    assert traffic.ends == ["promoted"]
    assert len(ended.log) == len(params.rollout.steps)
    assert traffic.looks * params.rollout.look_s <= 15 * 60.0


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"late": 0.8}, "late answers"),
        ({"errors": 0.7}, "errors"),
        ({"flips": 9.0}, "flips"),
        ({"cross_der": 0.9}, "cross der"),
    ],
)
def test_a_bad_one_is_rolled_back_within_two_minutes_and_few_ever_saw_it(params, bad, word):
    traffic = Simulated(**bad)
    ended = run(params, traffic)
    assert ended.status == "rolled_back"
    assert word in ended.why
    assert traffic.looks * params.rollout.look_s <= 120.0
    assert max(traffic.weights) <= 0.05
    assert traffic.ends == ["rolled_back"]


def test_good_ones_are_hardly_ever_rolled_back(params):
    ends = [run(params, Simulated(seed=seed)).status for seed in range(60)]
    assert ends.count("promoted") >= 58


def test_one_at_the_margin_is_not_promoted_and_waits_for_somebody(params):
    config = params.rollout.model_copy(update={"max_looks": 60})
    traffic = Simulated(late=config.max_late)
    ended = roll_out(config, Memory(), traffic, champion="1", challenger="2")
    assert ended.status == "held"
    assert "for you to decide" in ended.why
    assert traffic.ends == []


@pytest.mark.parametrize("bad", [{}, {"late": 0.8}], ids=["good", "slow"])
def test_killed_at_any_look_it_ends_where_it_would_have(params, bad):
    """The traffic goes on meanwhile: the same windows come, whoever looks."""
    whole = Simulated(**bad)
    expected = run(params, whole)
    for die_at in range(1, whole.looks + 1, max(1, whole.looks // 8)):
        journal, traffic = Memory(), Simulated(**bad, die_at=die_at)
        with pytest.raises(KeyboardInterrupt):
            run(params, traffic, journal)
        again = Simulated(**bad)
        for _ in range(die_at - 1):  # what came before the crash does not come again
            again.weights.append(params.rollout.steps[0])
            again.see()
        again.weights.clear()
        ended = run(params, again, journal)
        assert (ended.status, ended.step, ended.log) == (expected.status, expected.step, expected.log)


def test_an_ended_rollout_is_not_begun_again_and_another_challenger_is(params):
    journal = Memory()
    run(params, Simulated(late=0.9), journal)
    again = Simulated()
    assert run(params, again, journal).status == "rolled_back"
    assert again.looks == 0
    begun_anew = Simulated()
    assert roll_out(params.rollout, journal, begun_anew, champion="1", challenger="2", again=True).status == "promoted"
    other = roll_out(params.rollout, journal, Simulated(), champion="1", challenger="3")
    assert other.status == "promoted"


def test_a_challenger_that_is_down_goes_at_once_and_one_that_nobody_hears_is_held(params):
    quiet = Seen(0, 0.0, 0.0, 0.0)
    down = look(Rollout(champion="1", challenger="2"), Window(quiet, quiet, is_down=True), params.rollout)
    assert (down.status, down.why) == ("rolled_back", "the challenger is down")
    rollout = Rollout(champion="1", challenger="2")
    for _ in range(params.rollout.max_looks):
        rollout = look(rollout, Window(quiet, quiet), params.rollout)
    assert rollout.status == "held"
    assert "too few streams" in rollout.why


def test_what_was_held_goes_on_when_told_so_and_what_is_taken_back_by_hand_ends(params):
    config = params.rollout.model_copy(update={"max_looks": 60})
    journal = Memory()
    held = roll_out(config, journal, Simulated(late=config.max_late), champion="1", challenger="2")
    assert held.is_held
    assert roll_out(config, journal, Simulated(), champion="1", challenger="2").is_held
    assert roll_out(config, journal, Simulated(), champion="1", challenger="2", resume=True).status == "promoted"
    traffic = Simulated()
    ended = roll_back(journal, traffic, Rollout(champion="1", challenger="2"), "aborted by ada")
    assert (ended.status, ended.why, traffic.ends) == ("rolled_back", "aborted by ada", ["rolled_back"])


def test_a_crash_at_the_end_is_made_good_and_the_end_is_not_done_twice(params):
    journal, traffic = Memory(), Simulated()

    def die(rollout):
        raise KeyboardInterrupt

    traffic.end, end = die, traffic.end
    with pytest.raises(KeyboardInterrupt):
        run(params, traffic, journal)
    traffic.end = end
    assert run(params, traffic, journal).status == "promoted"
    assert run(params, traffic, journal).is_settled
    assert traffic.ends == ["promoted"]


def test_one_that_is_called_off_ends_at_once(params):
    traffic = Simulated()
    traffic.called_off_at = 7
    ended = run(params, traffic)
    assert (ended.status, ended.why, traffic.looks) == ("rolled_back", "somebody called it off", 7)
    assert traffic.ends == ["rolled_back"]


def test_the_bandit_finds_the_better_one_and_takes_back_the_worse(params):
    config = params.rollout
    traffic = Simulated(late=-0.02)
    traffic.champion_late = 0.4
    better = roll_out(config, Memory(), traffic, champion="1", challenger="2", policy="bandit")
    assert better.status == "promoted", better.why
    assert len(set(traffic.weights)) > 5
    assert min(traffic.weights) >= config.bandit_floor
    worse = roll_out(config, Memory(), Simulated(flips=9.0), champion="1", challenger="2", policy="bandit")
    assert worse.status == "rolled_back"
    alike = config.model_copy(update={"max_looks": 60})
    assert roll_out(alike, Memory(), Simulated(), champion="1", challenger="2", policy="bandit").is_held


def test_without_anything_to_compare_it_is_not_promoted_unless_nothing_is_shadowed(params):
    config = params.rollout.model_copy(update={"max_looks": 60})
    traffic = Simulated()
    see = traffic.see
    traffic.see = lambda: replace(see(), cross_der=None)
    held = roll_out(config, Memory(), traffic, champion="1", challenger="2")
    assert held.is_held
    assert held.step == 0
    unshadowed = config.model_copy(update={"shadow": 0.0})
    assert roll_out(unshadowed, Memory(), traffic, champion="1", challenger="2").status == "promoted"
