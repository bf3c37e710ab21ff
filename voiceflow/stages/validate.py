"""validate: Great Expectations suites over recordings, turns and speakers; refuses bad data and names the rows."""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voiceflow.config import ValidateConfig
from voiceflow.errors import DataRefusedError
from voiceflow.stages.checks import Row, measure
from voiceflow.stages.dataset import read_recordings

MAX_ROWS_TOLD = 5


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
    tables["splits"] = [
        {
            "name": split,
            "num_speakers": len({name for row in recordings if row.split == split for name in row.speakers}),
            "shortfall": max(
                0, bound - len({name for row in recordings if row.split == split for name in row.speakers})
            ),
        }
        for split, bound in config.min_speakers.items()
    ]
    results = {name: _run_suite(rows, _suite(name, config)) for name, rows in tables.items() if rows}
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


def _suite(table: str, config: ValidateConfig) -> list[Any]:
    """Expectations of one table; each has the name of its check and a sentence in `meta`."""
    import great_expectations.expectations as gxe

    def must(check: str, sentence: str, kind: Any, *, severity: str = "critical", **arguments: Any) -> Any:
        return kind(**arguments, severity=severity, meta={"check": check, "sentence": sentence})

    between, in_set = gxe.ExpectColumnValuesToBeBetween, gxe.ExpectColumnValuesToBeInSet
    if table == "recordings":
        return [
            must("unreadable_audio", "audio that cannot be read", in_set, column="read_error", value_set=[""]),
            must("unreadable_turns", "RTTM that cannot be read", in_set, column="turns_error", value_set=[""]),
            must(
                "sample_rate", "the file's rate is not the labelled one", in_set, column="rate_agrees", value_set=[True]
            ),
            must(
                "sample_rate_expected",
                f"the labelled rate is not {config.sample_rate_hz} Hz",
                in_set,
                column="declared_rate_hz",
                value_set=[config.sample_rate_hz],
            ),
            must(
                "sample_rate_content",
                "voices lie too low for the labelled rate: the audio was recorded at a higher one",
                between,
                column="low_band_share",
                max_value=config.max_low_band_share,
            ),
            must(
                "duration",
                f"shorter than {config.min_duration_s:g} s or longer than {config.max_duration_s:g} s",
                between,
                column="duration_s",
                min_value=config.min_duration_s,
                max_value=config.max_duration_s,
            ),
            must(
                "silent_recording", "silent", between, column="silence_fraction", max_value=config.max_silence_fraction
            ),
            must(
                "clipped",
                "clipped at full scale",
                between,
                column="clipped_fraction",
                max_value=config.max_clipped_fraction,
            ),
            must("nan_samples", "NaN or infinite samples", between, column="num_bad_samples", max_value=0),
            must("duplicate_audio", "the same audio in two recordings", between, column="copies", max_value=1),
            must(
                "digest", "the file is not the one that was prepared", in_set, column="digest_agrees", value_set=[True]
            ),
            must(
                "labels_disagree",
                "audio inside turns is not louder than outside",
                between,
                column="label_contrast_db",
                min_value=config.min_label_contrast_db,
            ),
            must("no_turns", "no turns at all", between, column="num_turns", min_value=1, severity="warning"),
            must("dc_offset", "a constant offset", between, column="dc_offset", max_value=0.02, severity="warning"),
        ]
    if table == "turns":
        return [
            must("turn_past_end", "ends after the audio", between, column="past_end_s", max_value=0.0),
            must(
                "speaker_overlaps_itself",
                "overlaps another turn of its speaker",
                between,
                column="overlap_with_itself_s",
                max_value=0.0,
            ),
            must("short_turn", "shorter than 50 ms", between, column="duration_s", min_value=0.05, severity="warning"),
        ]
    if table == "speakers":
        return [must("speaker_in_two_splits", "is in more than one split", between, column="num_splits", max_value=1)]
    return [must("too_few_speakers", "has too few speakers", between, column="shortfall", max_value=0)]


def _run_suite(rows: list[Row], expectations: list[Any]) -> Any:
    """Run expectations over a table in an ephemeral context."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    definition = (
        context.data_sources.add_pandas("dataset")
        .add_dataframe_asset("table")
        .add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(gx.ExpectationSuite(name="voiceflow", expectations=expectations))
    run = context.validation_definitions.add(gx.ValidationDefinition(name="voiceflow", data=definition, suite=suite))
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
        # Labels of real recordings bridge pauses and crosstalk: their contrast warns, it does not refuse.
        if meta["check"] == "labels_disagree" and all(by_name[name]["split"] == "recorded" for name in bad):
            severity = "warning"
        findings.append(
            {"check": meta["check"], "severity": severity, "message": f"{meta['sentence']}: {shown}{more}", "rows": bad}
        )
    return findings


def _shown(row: Row, column: str) -> str:
    if column == "num_splits":
        return str(row["splits"])
    if column == "rate_agrees":
        return f"file {row['rate_hz']} Hz, labelled {row['declared_rate_hz']} Hz"
    value = row[column]
    return f"{column} {value:.3g}" if isinstance(value, float) else f"{column} {value}"


def _page(verdict: dict[str, Any], results: dict[str, Any]) -> str:
    """One page: the verdict for people, then Great Expectations' own account of each suite."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    rows = "".join(
        f"<tr><td>{finding['severity']}</td><td><b>{finding['check']}</b></td><td>{html.escape(finding['message'])}</td></tr>"
        for finding in [*verdict["faults"], *verdict["warnings"]]
    )
    head = (
        f"<h1>Data {'accepted' if verdict['passed'] else 'refused'}</h1>"
        f"<p>checked: {html.escape(json.dumps(verdict['checked']))}</p>"
        f"<table border=1 cellpadding=6>{rows or '<tr><td>nothing found</td></tr>'}</table>"
    )
    renderer = ValidationResultsPageRenderer(run_info_at_end=True)
    pages = "".join(
        f"<h2>{name}</h2>{DefaultJinjaPageView().render(renderer.render(result))}" for name, result in results.items()
    )
    return f"<!doctype html><meta charset=utf-8><title>VoiceFlow validate</title>{head}{pages}"
