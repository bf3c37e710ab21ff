"""validate: Great Expectations suites over recordings, turns and speakers; refuses bad data and names the rows."""

import html
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from voiceflow.config import ValidateConfig
from voiceflow.errors import DataRefusedError
from voiceflow.stages.checks import Row, measure
from voiceflow.stages.dataset import Recording, read_recordings

MAX_ROWS_TOLD = 5
MIN_VOICE_HEIGHT = 0.27
"""Refused below. Of 44.1 kHz speech labelled 16 kHz about 70 % of recordings fall below, of clean ones none."""
MIN_CONDITION_SHARE = 0.02
"""Warned of below: a condition that a split hardly has."""
LOW_VOICE_HEIGHT = 0.42
"""Warned of below: 97 % of such recordings, and about 1 % of clean ones (very low voices)."""


def validate(
    config: ValidateConfig,
    dataset: Path,
    report: Path,
    *,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Check a dataset; writes validate.json and validate.html.

    Args:
        config: Bounds.
        dataset: What `prepare` wrote, or another folder of its shape.
        report: Folder of the reports.
        progress: Called after each recording.

    Returns:
        The content of validate.json: `passed`, `faults` (critical) and `warnings`, each with its
        check, message and rows. Nothing is raised for bad data; see `require_valid`.
    """
    recordings = read_recordings(dataset)
    tables = dict(zip(("recordings", "turns", "speakers"), measure(dataset, recordings, config, progress), strict=True))
    tables["splits"] = _split_rows(recordings, config)
    tables["conditions"] = _condition_rows(recordings)
    results = {name: _run_suite(name, rows, _suite(name, config)) for name, rows in tables.items() if rows}
    found = [finding for name, result in results.items() for finding in _findings(result, tables[name])]
    verdict = {
        "passed": not any(finding["severity"] == "critical" for finding in found),
        "faults": [finding for finding in found if finding["severity"] == "critical"],
        "warnings": [finding for finding in found if finding["severity"] != "critical"],
        "checked": {name: len(rows) for name, rows in tables.items()},
        "statistics": {name: result.statistics for name, result in results.items()},
    }
    report.mkdir(parents=True, exist_ok=True)
    (report / "validate.json").write_text(json.dumps(verdict, indent=2, default=str) + "\n", encoding="utf-8")
    (report / "validate.html").write_text(_page(verdict, results), encoding="utf-8")
    return verdict


def require_valid(verdict: dict[str, Any], report: Path) -> None:
    """Refuse data with critical faults.

    Raises:
        DataRefusedError: Naming each fault and its rows.
    """
    if not verdict["passed"]:
        raise DataRefusedError([f"{fault['check']}: {fault['message']}" for fault in verdict["faults"]], str(report))


def _split_rows(recordings: Sequence[Recording], config: ValidateConfig) -> list[Row]:
    rows = []
    for split, bound in config.min_speakers.items():
        num_speakers = len({name for row in recordings if row.split == split for name in row.speakers})
        rows.append({"name": split, "num_speakers": num_speakers, "shortfall": max(0, bound - num_speakers)})
    return rows


def _condition_rows(recordings: Sequence[Recording]) -> list[Row]:
    """Share of each acoustic condition that occurs anywhere, in each simulated split."""
    made = [row for row in recordings if row.split != "recorded"]
    conditions = sorted({row.condition for row in made})
    rows = []
    for split in sorted({row.split for row in made}):
        found = Counter(row.condition for row in made if row.split == split)
        rows += [
            {"name": f"{split} {condition}", "share": found[condition] / found.total()} for condition in conditions
        ]
    return rows


def _suite(table: str, config: ValidateConfig) -> list[Any]:
    """Expectations of one table; each has the name of its check and a sentence in `meta`."""
    import great_expectations.expectations as gxe

    def must(check: str, sentence: str, kind: Any, *, severity: str = "critical", **arguments: Any) -> Any:
        return kind(**arguments, severity=severity, meta={"check": check, "sentence": sentence})

    between, in_set = gxe.ExpectColumnValuesToBeBetween, gxe.ExpectColumnValuesToBeInSet

    def below(check: str, sentence: str, column: str, bound: float, **arguments: Any) -> Any:
        return must(check, sentence, between, column=column, max_value=bound, **arguments)

    def above(check: str, sentence: str, column: str, bound: float, **arguments: Any) -> Any:
        return must(check, sentence, between, column=column, min_value=bound, **arguments)

    def one_of(check: str, sentence: str, column: str, value: Any) -> Any:
        return must(check, sentence, in_set, column=column, value_set=[value])

    rate, low_db = f"{config.sample_rate_hz} Hz", config.min_label_contrast_db
    lengths = f"shorter than {config.min_duration_s:g} s or longer than {config.max_duration_s:g} s"
    quiet, low = "audio inside turns is not louder than outside", "voices lie too low for the labelled rate"
    suites = {
        "recordings": [
            one_of("unreadable_audio", "audio that cannot be read", "read_error", ""),
            one_of("unreadable_turns", "RTTM that cannot be read", "turns_error", ""),
            one_of("sample_rate", "the file's rate is not the labelled one", "rate_agrees", True),
            one_of("sample_rate_expected", f"labelled rate is not {rate}", "declared_rate_hz", config.sample_rate_hz),
            above("sample_rate_content", f"{low}: recorded at a higher one", "voice_height", MIN_VOICE_HEIGHT),
            below("sample_rate_low_band", f"{low}: most is hum", "low_band_share", config.max_low_band_share),
            above("duration", lengths, "duration_s", config.min_duration_s, max_value=config.max_duration_s),
            below("silent_recording", "silent", "silence_fraction", config.max_silence_fraction),
            below("clipped", "clipped at full scale", "clipped_fraction", config.max_clipped_fraction),
            below("nan_samples", "NaN or infinite samples", "num_bad_samples", 0),
            below("duplicate_audio", "the same audio in two recordings", "copies", 1),
            one_of("digest", "the file is not the one that was prepared", "digest_agrees", True),
            above("labels_disagree", quiet, "label_contrast_db", low_db),
            above("missing_turns", "no turns at all", "num_turns", 1),
            one_of("speakers_disagree", "speakers of the turns are not those listed", "speakers_agree", True),
            above("low_voices", f"{low}, or are very deep", "voice_height", LOW_VOICE_HEIGHT, severity="warning"),
            above("labels_disagree", quiet, "recorded_contrast_db", low_db, severity="warning"),
            above("no_turns", "no turns at all", "num_turns_recorded", 1, severity="warning"),
            below("dc_offset", "a constant offset", "dc_offset", 0.02, severity="warning"),
        ],
        "turns": [
            below("turn_past_end", "ends after the audio", "past_end_s", 0.0),
            below("speaker_overlaps_itself", "overlaps another turn of its speaker", "overlap_with_itself_s", 0.0),
            above("short_turn", "shorter than 50 ms", "duration_s", 0.05, severity="warning"),
        ],
        "speakers": [below("speaker_in_two_splits", "is in more than one split", "num_splits", 1)],
        "splits": [below("too_few_speakers", "has too few speakers", "shortfall", 0)],
        "conditions": [
            above("unbalanced_conditions", "hardly occurs", "share", MIN_CONDITION_SHARE, severity="warning")
        ],
    }
    return suites[table]


def _run_suite(name: str, rows: list[Row], expectations: list[Any]) -> Any:
    """Run expectations over a table in an ephemeral context."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    definition = (
        context.data_sources.add_pandas("dataset").add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    run = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=definition, suite=suite))
    frame = pd.DataFrame(rows)
    return run.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["name"]},
    )


def _findings(result: Any, rows: list[Row]) -> list[dict[str, Any]]:
    """What failed, with the names of the rows."""
    by_name = {row["name"]: row for row in rows}
    findings = []
    for outcome in result.results:
        if outcome.success:
            continue
        config = outcome.expectation_config
        bad = [entry["name"] for entry in outcome.result.get("unexpected_index_list") or []]
        column = config.kwargs["column"]
        meta = config.meta
        shown = ", ".join(f"{name} ({_shown(by_name[name], column)})" for name in bad[:MAX_ROWS_TOLD])
        more = f" and {len(bad) - MAX_ROWS_TOLD} more" if len(bad) > MAX_ROWS_TOLD else ""
        severity = getattr(config.severity, "value", config.severity) or "critical"
        # A check that could not be made has no rows; it must not pass for that.
        reason = f"{shown}{more}" if bad else f"could not be checked ({_exception(outcome)})"
        findings.append(
            {"check": meta["check"], "severity": severity, "message": f"{meta['sentence']}: {reason}", "rows": bad}
        )
    return findings


def _exception(outcome: Any) -> str:
    info = outcome.exception_info or {}
    details = [info, *(value for value in info.values() if isinstance(value, dict))]
    return next((str(entry["exception_message"]) for entry in details if entry.get("exception_message")), "no reason")


def _shown(row: Row, column: str) -> str:
    if column == "num_splits":
        return str(row["splits"])
    if column == "rate_agrees":
        return f"file {row['rate_hz']} Hz, labelled {row['declared_rate_hz']} Hz"
    if column == "copies":
        return f"as {row['same_audio']}"
    value = row[column]
    return f"{column} {value:.3g}" if isinstance(value, float) else f"{column} {value}"


def _page(verdict: dict[str, Any], results: dict[str, Any]) -> str:
    """One page: the verdict for people, then Great Expectations' own account of each suite."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    rows = "".join(
        f"<tr><td>{finding['severity']}</td><td><b>{finding['check']}</b></td>"
        f"<td>{html.escape(finding['message'])}</td></tr>"
        for finding in [*verdict["faults"], *verdict["warnings"]]
    )
    checked = ", ".join(f"{count} {name}" for name, count in verdict["checked"].items())
    head = (
        f"<h1>Data {'accepted' if verdict['passed'] else 'refused'}</h1><p>checked: {checked}</p>"
        f"<table border=1 cellpadding=6>{rows or '<tr><td>nothing found</td></tr>'}</table>"
    )
    renderer = ValidationResultsPageRenderer(run_info_at_end=True)
    pages = "".join(
        f"<h2>{name}</h2>{DefaultJinjaPageView().render(renderer.render(result))}" for name, result in results.items()
    )
    return f"<!doctype html><meta charset=utf-8><title>VoiceFlow validate</title>{head}{pages}"
