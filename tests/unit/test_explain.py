import json

import pytest

from voiceflow.cli.explain import explain, keys_of, note_run, read_history, read_steps

SECTIONS = ("prepare", "validate", "train", "model", "decision", "evaluate", "export", "latency", "promote")


@pytest.fixture
def arguments():
    return {f"{name}_json": json.dumps({"seed": 1, "steps": 5}) for name in SECTIONS} | {
        "data_revision": "abc",
        "code_revision": "1",
        "reason": "",
    }


def changed(arguments, section, **values):
    name = f"{section}_json"
    return arguments | {name: json.dumps(json.loads(arguments[name]) | values)}


def run_once(path, arguments, steps=None):
    note_run(path, arguments, read_steps() if steps is None else steps)
    return read_history(path)


def test_the_same_run_is_reused_but_for_promote(tmp_path, arguments):
    history = run_once(tmp_path / "runs", arguments)
    told = explain(arguments, history)
    assert {name for name, what in told.items() if what == "reused"} == set(told) - {"promote"}
    assert "champion" in told["promote"]


@pytest.mark.parametrize(
    ("section", "again"),
    [
        ("prepare", {"prepare", "join", "validate", "train", "evaluate", "export", "latency"}),
        ("train", {"train", "evaluate", "export", "latency"}),
        ("evaluate", {"evaluate", "export", "latency"}),
        ("export", {"export", "latency"}),
        ("latency", {"latency"}),
    ],
)
def test_a_changed_value_runs_what_depends_on_it_and_is_named(tmp_path, arguments, section, again):
    history = run_once(tmp_path / "runs", arguments)
    told = explain(changed(arguments, section, steps=9), history)
    assert {name for name, what in told.items() if what != "reused"} - {"promote"} == again
    assert f"{section}.steps 5 -> 9" in told[section]


def test_going_back_to_an_earlier_value_reuses_the_earlier_run(tmp_path, arguments):
    run_once(tmp_path / "runs", arguments)
    history = run_once(tmp_path / "runs", changed(arguments, "train", steps=9))
    assert explain(arguments, history)["train"] == "reused"


def test_data_code_and_failures_are_told(tmp_path, arguments):
    history = run_once(tmp_path / "runs", arguments, ["prepare", "validate"])
    told = explain(arguments | {"data_revision": "def"}, history)
    assert told["prepare"] == "runs: data_revision abc -> def"
    assert told["train"] == "runs: it has never ended well here"
    assert "the code has changed" in explain(arguments | {"code_revision": "2"}, history)["validate"]


def test_every_step_is_there_and_keys_differ(arguments):
    assert next(iter(read_steps())) == "prepare"
    assert set(read_steps()) == {"prepare", "join", "validate", "train", "evaluate", "export", "latency", "promote"}
    assert len(set(keys_of(arguments).values())) == 8
