"""Why a step of the pipeline runs again: what it depends on, beside what it depended on before."""

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

History = list[dict[str, Any]]
"""Of each run: `arguments`, and the `keys` of the steps that ended well or were reused."""
MOST_RUNS = 100


CHANNEL = "pipelinechannel--"
"""How the compiler calls arguments of the pipeline inside a loop."""


@dataclass(frozen=True)
class Step:
    """A step of the compiled pipeline: which arguments reach it, and which steps come before."""

    arguments: list[str]
    after: list[str]
    is_cached: bool


def read_steps() -> dict[str, Step]:
    """Steps of the compiled training pipeline, each after those it needs; one in a loop is one step."""
    text = importlib.resources.files("pipelines").joinpath("training.yaml").read_text(encoding="utf-8")
    pipeline = next(yaml.safe_load_all(text))
    tasks = pipeline["root"]["dag"]["tasks"]
    bodies = {
        name: pipeline["components"][task["componentRef"]["name"]]["dag"]["tasks"]
        for name, task in tasks.items()
        if "parameterIterator" in task
    }
    called = {name: next(iter(bodies[name])) if name in bodies else name for name in tasks}
    steps = {}
    for name, task in tasks.items():
        inputs = task.get("inputs", {})
        makers = [given["taskOutputArtifact"]["producerTask"] for given in inputs.get("artifacts", {}).values()]
        caching = (bodies[name][called[name]] if name in bodies else task).get("cachingOptions", {})
        steps[called[name]] = Step(
            arguments=sorted(
                given["componentInputParameter"].removeprefix(CHANNEL)
                for given in inputs.get("parameters", {}).values()
                if "componentInputParameter" in given
            ),
            after=sorted({called[other] for other in (*makers, *task.get("dependentTasks", []))}),
            is_cached=bool(caching.get("enableCache")),
        )
    ordered: dict[str, Step] = {}
    while len(ordered) < len(steps):
        ordered |= {name: step for name, step in steps.items() if set(step.after) <= set(ordered)}
    return ordered


def keys_of(arguments: Mapping[str, Any]) -> dict[str, str]:
    """What each step depends on, all that comes before it included, as a digest."""
    keys: dict[str, str] = {}
    for name, step in read_steps().items():
        given = {argument: arguments.get(argument) for argument in step.arguments}
        text = json.dumps([given, [keys[other] for other in step.after]], sort_keys=True, default=str)
        keys[name] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def explain(arguments: Mapping[str, Any], history: History) -> dict[str, str]:
    """What would become of each step: "reused", or why it runs."""
    keys = keys_of(arguments)
    known = {(name, key) for run in history for name, key in run["keys"].items()}
    told: dict[str, str] = {}
    for name, step in read_steps().items():
        again = [other for other in step.after if told[other] != "reused"]
        if not step.is_cached:
            told[name] = "runs: never reused, for it depends on what is champion now"
        elif (name, keys[name]) in known:
            told[name] = "reused"
        elif not any(name in run["keys"] for run in history):
            told[name] = "runs: it has never ended well here"
        else:
            last = next(run for run in reversed(history) if name in run["keys"])
            changes = list(_changes(step.arguments, last["arguments"], arguments))
            told[name] = "runs: " + "; ".join([*changes, *(f"{other} runs" for other in again)])
    return told


def _changes(names: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    for name in names:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if name.endswith("_json") and isinstance(old, str) and isinstance(new, str):
            section = name.removesuffix("_json")
            yield from _differences(section, json.loads(old), json.loads(new))
        elif name == "code_revision":
            yield "the code has changed"
        else:
            yield f"{name} {_short(old)} -> {_short(new)}"


def _differences(path: str, old: Any, new: Any) -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield f"{path} {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:18]}..{text[-18:]}"


def read_history(path: Path) -> History:
    """Runs that were noted, oldest first."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def note_run(path: Path, arguments: Mapping[str, Any], ended_well: Iterable[str]) -> None:
    """Note which steps of a run are there to be reused."""
    keys = keys_of(arguments)
    run = {"arguments": dict(arguments), "keys": {name: keys[name] for name in ended_well}}
    runs = [*read_history(path), run][-MOST_RUNS:]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in runs), encoding="utf-8")
