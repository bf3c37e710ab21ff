"""validate: Great Expectations suites over recordings, turns and speakers; refuses bad data and names the rows."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voiceflow.checks.measure import Item, Row, measure_item, tables_of
from voiceflow.checks.rules import TABLES, Rule, check_severities, expectations_of, rules_of
from voiceflow.config import ValidateConfig
from voiceflow.corpora.read import UNSPLIT
from voiceflow.errors import DataRefusedError
from voiceflow.stages.data_docs import render_page, summarise
from voiceflow.stages.dataset import QUARANTINE, dataset_items
from voiceflow.workers import in_parallel

MAX_ROWS_TOLD = 5
SPLIT_TABLES = ("splits", "conditions")
REPORT, PAGE, SUMMARY = "validate.json", "validate.html", "validate.md"


@dataclass
class Tables:
    """What was measured, as Great Expectations sees it: rows by table."""

    recordings: list[Row]
    turns: list[Row]
    speakers: list[Row]

    def rows(self, config: ValidateConfig, without: frozenset[str] = frozenset()) -> dict[str, list[Row]]:
        """All tables; those of splits without some recordings."""
        kept = [row for row in self.recordings if row["name"] not in without]
        return {
            "recordings": self.recordings,
            "turns": self.turns,
            "speakers": self.speakers,
            "splits": _split_rows(kept, config),
            "conditions": _condition_rows(kept),
        }


def validate(
    config: ValidateConfig,
    dataset: Path,
    report: Path,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Check a dataset; see `check` for the files and the result.

    Args:
        config: Bounds and severities.
        dataset: What `prepare` wrote.
        report: Folder of the reports.
        progress: Called after each recording.
    """
    return check(config, dataset_items(dataset), report, progress=progress)


def check(
    config: ValidateConfig,
    items: Sequence[Item],
    report: Path,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Check recordings; writes validate.json, validate.html, validate.md and quarantine.json.

    Args:
        config: Bounds and severities.
        items: The recordings, of any kind of folder.
        report: Folder of the reports.
        progress: Called after each recording.

    Returns:
        The content of validate.json: `passed`, `faults` (critical) and `warnings`, each with its check, message and
        rows, and `quarantined`: names and reasons of recordings that are kept out. Nothing is raised for bad data;
        see `require_valid`.

    Raises:
        ConfigError: `severity` does not name every rule.
    """
    check_severities(config)
    jobs = [(item, config) for item in items]
    measured = []
    for done, one in enumerate(in_parallel(measure_item, jobs, num_workers=config.num_workers), start=1):
        measured.append(one)
        progress("read recordings", done, len(jobs))
    tables = Tables(*tables_of(items, measured, config))
    results, found = _judge(tables.rows(config), config)
    quarantined = _quarantine(found, tables) if config.quarantine else {}
    if quarantined:
        # What is left must be enough, and balanced.
        found = [finding for finding in found if finding["table"] not in SPLIT_TABLES]
        rest = {name: tables.rows(config, frozenset(quarantined))[name] for name in SPLIT_TABLES}
        rest_results, rest_found = _judge(rest, config)
        results, found = results | rest_results, found + rest_found
    critical = [finding for finding in found if finding["severity"] == "critical"]
    verdict = {
        "passed": all(config.quarantine and finding["curable"] for finding in critical),
        "faults": critical,
        "warnings": [finding for finding in found if finding["severity"] != "critical"],
        "quarantined": quarantined,
        "checked": {name: len(rows) for name, rows in tables.rows(config).items()},
        "hours": round(sum(row["duration_s"] or 0.0 for row in tables.recordings) / 3600, 3),
        "statistics": {name: result.statistics for name, result in results.items()},
    }
    report.mkdir(parents=True, exist_ok=True)
    (report / REPORT).write_text(json.dumps(verdict, indent=2, default=str) + "\n", encoding="utf-8")
    (report / QUARANTINE).write_text(json.dumps(quarantined, indent=2) + "\n", encoding="utf-8")
    (report / SUMMARY).write_text(summarise(verdict), encoding="utf-8")
    places = {item.name: item.place for item in items}
    page = render_page(verdict, results, places, tables.recordings, tables.turns)
    (report / PAGE).write_text(page, encoding="utf-8")
    return verdict


def require_valid(verdict: dict[str, Any], report: Path) -> None:
    """Refuse data with critical faults that no quarantine keeps out.

    Raises:
        DataRefusedError: Naming each fault and its rows.
    """
    if not verdict["passed"]:
        raise DataRefusedError([f"{fault['check']}: {fault['message']}" for fault in verdict["faults"]], str(report))


def _split_rows(recordings: Sequence[Row], config: ValidateConfig) -> list[Row]:
    if all(row["split"] == UNSPLIT for row in recordings):
        return []
    rows = []
    for split, bound in config.min_speakers.items():
        num_speakers = len({name for row in recordings if row["split"] == split for name in row["turn_speakers"]})
        rows.append({"name": split, "num_speakers": num_speakers, "shortfall": max(0, bound - num_speakers)})
    return rows


def _condition_rows(recordings: Sequence[Row]) -> list[Row]:
    """Share of each acoustic condition that occurs anywhere, in each simulated split."""
    made = [row for row in recordings if row["split"] != UNSPLIT]
    conditions = sorted({row["condition"] for row in made})
    rows = []
    for split in sorted({row["split"] for row in made}):
        found = Counter(row["condition"] for row in made if row["split"] == split)
        rows += [
            {"name": f"{split} {condition}", "share": found[condition] / found.total()} for condition in conditions
        ]
    return rows


def _judge(tables: dict[str, list[Row]], config: ValidateConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Great Expectations' results by table, and what failed."""
    rules = rules_of(config)
    results, found = {}, []
    for name in TABLES:
        rows = tables.get(name)
        if rows:
            results[name] = _run_suite(name, rows, [rule for rule in rules if rule.table == name], config)
            found += _findings(name, results[name], rows, [rule for rule in rules if rule.table == name])
    return results, found


def _run_suite(name: str, rows: list[Row], rules: Sequence[Rule], config: ValidateConfig) -> Any:
    """Run expectations over a table in an ephemeral context."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    definition = (
        context.data_sources.add_pandas("dataset").add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations_of(rules, config)))
    run = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=definition, suite=suite))
    columns = ["name", *dict.fromkeys(rule.column for rule in rules)]
    frame = pd.DataFrame([{column: row[column] for column in columns} for row in rows])
    return run.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["name"]},
    )


def _findings(table: str, result: Any, rows: list[Row], rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """What failed, with the names of the rows, the worst first."""
    by_name = {row["name"]: row for row in rows}
    findings: dict[str, dict[str, Any]] = {}
    for outcome in result.results:
        if outcome.success:
            continue
        config = outcome.expectation_config
        rule = rules[config.meta["rule"]]
        bad = [by_name[entry["name"]] for entry in outcome.result.get("unexpected_index_list") or []]
        bad.sort(key=lambda row: -rule.badness(row[rule.column]))
        shown = [f"{row['name']} ({_shown(row, rule.column)})" for row in bad]
        # A check that could not be made has no rows; it must not pass for that.
        shown = shown or [f"could not be checked ({_exception(outcome)})"]
        severity = getattr(config.severity, "value", config.severity) or "critical"
        finding = findings.setdefault(
            rule.name,
            {"check": rule.name, "severity": severity, "table": table, "curable": True, "rows": [], "details": []},
        )
        finding["curable"] &= bool(bad) and table not in SPLIT_TABLES
        # Two rules of one name are one finding.
        fresh = [index for index, row in enumerate(bad) if row["name"] not in finding["rows"]]
        finding["rows"] += [bad[index]["name"] for index in fresh]
        finding["details"] += [shown[index] for index in fresh] if bad else shown
        more = len(finding["details"]) - MAX_ROWS_TOLD
        told = ", ".join(finding["details"][:MAX_ROWS_TOLD]) + (f" and {more} more" if more > 0 else "")
        finding["message"] = f"{rule.sentence}: {told}"
    return list(findings.values())


def _quarantine(found: Sequence[dict[str, Any]], tables: Tables) -> dict[str, list[str]]:
    """Recordings that must be kept out so that no critical fault is left, with the checks that say so."""
    by_name = {row["name"]: row for row in tables.recordings}
    of_turn = {row["name"]: row["recording"] for row in tables.turns}
    kept_out: dict[str, list[str]] = {}
    for finding in found:
        if finding["severity"] != "critical" or not finding["curable"]:
            continue
        names = finding["rows"]
        if finding["table"] == "turns":
            names = list(dict.fromkeys(of_turn[name] for name in names))
        elif finding["table"] == "speakers":
            # What is held out stays; training does without.
            names = [
                row["name"]
                for row in tables.recordings
                if row["split"] == "train" and set(names) & set(row["turn_speakers"])
            ]
        elif finding["check"] in ("duplicate_audio", "near_duplicate"):
            names = _all_but_one(finding["check"], [by_name[name] for name in names])
        for name in names:
            kept_out.setdefault(name, []).append(finding["check"])
    return dict(sorted(kept_out.items()))


def _all_but_one(name: str, rows: Sequence[Row]) -> list[str]:
    """Of copies one is kept: a held-out one before one of training, then the first by name."""
    kept: set[str] = set()
    out = []
    for row in sorted(rows, key=lambda row: (row["split"] == "train", row["name"])):
        same = row["same_audio"].split(", ") if name == "duplicate_audio" else [row["near_copy_of"]]
        if kept & set(same):
            out.append(row["name"])
        else:
            kept.add(row["name"])
    return out


def _exception(outcome: Any) -> str:
    info = outcome.exception_info or {}
    details = [info, *(value for value in info.values() if isinstance(value, dict))]
    return next((str(entry["exception_message"]) for entry in details if entry.get("exception_message")), "no reason")


def _shown(row: Row, column: str) -> str:
    """What a row is told with."""
    value = row[column]
    if column == "num_splits":
        return str(row["splits"])
    if column == "rate_agrees":
        return f"file {row['rate_hz']} Hz, labelled {row['declared_rate_hz']} Hz"
    if column == "copies":
        return f"as {row['same_audio']}"
    if column == "near_copy_share":
        return f"{100 * value:.0f} % as {row['near_copy_of']}"
    if column in ("same_voice_score", "same_voice_likeness", "leaked_voice_score"):
        return f"as {row['same_voice_as']}, score {value:.3g}"
    if column == "label_drift_s":
        return f"the audio is up to {row['label_lag_s']:+.2f} s later than its turns"
    if column == "bandwidth_share":
        return f"ends at {row['bandwidth_hz']:.0f} Hz of {row['rate_hz'] / 2:.0f}"
    if column in ("wrong_channel", "turn_unit"):
        return str(value)
    return f"{column} {value:.3g}" if isinstance(value, float) else f"{column} {value}"
