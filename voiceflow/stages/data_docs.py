"""What `validate` found, for people: a page with players for the worst rows, and a summary for a pull request."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voiceflow.audio import read_file
from voiceflow.checks.measure import Row
from voiceflow.corpora.read import AudioPlace
from voiceflow.errors import VoiceflowError

PLAYERS = 3
"""For the worst rows of each finding."""
MAX_PLAYERS = 36
EXCERPT_S = 5.0
MAX_SUMMARY_ROWS = 3
MAX_SUMMARY_CHARACTERS = 60_000
"""GitHub takes 65,536 in a comment."""
STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:78em;padding:0 1em;color:#1c2127}
table{border-collapse:collapse}td,th{border:1px solid #c9ced6;padding:6px 10px;text-align:left;vertical-align:top}
.critical{color:#b3261e;font-weight:600}.warning{color:#8a5a00}.off{color:#777}audio{height:32px;vertical-align:middle}
code{background:#f2f4f7;padding:1px 4px;border-radius:3px}details{margin:1em 0}"""


def summarise(verdict: dict[str, Any]) -> str:
    """Markdown that fits in a comment: the verdict, then a line for each finding."""
    checked = verdict["checked"]
    lines = [
        f"### Data {'accepted' if verdict['passed'] else 'refused'}",
        "",
        f"{checked['recordings']} recordings, {verdict['hours']:.1f} h, {checked['speakers']} speakers: "
        f"{len(verdict['faults'])} faults, {len(verdict['warnings'])} warnings, "
        f"{len(verdict['quarantined'])} recordings in quarantine.",
        "",
    ]
    findings = [*verdict["faults"], *verdict["warnings"]]
    if findings:
        lines += ["| | check | rows | worst |", "|---|---|---:|---|"]
    for finding in findings:
        shown = "<br>".join(detail.replace("|", "\\|") for detail in finding["details"][:MAX_SUMMARY_ROWS])
        lines.append(f"| {finding['severity']} | `{finding['check']}` | {len(finding['rows'])} | {shown} |")
    text = "\n".join(lines) + "\n"
    return text if len(text) <= MAX_SUMMARY_CHARACTERS else text[:MAX_SUMMARY_CHARACTERS] + "\n\n(cut off)\n"


def render_page(
    verdict: dict[str, Any],
    results: dict[str, Any],
    places: Mapping[str, AudioPlace],
    recordings: Sequence[Row],
    turns: Sequence[Row],
) -> str:
    """One page that needs nothing else: the verdict with players, then Great Expectations' own account."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    players = _Players(places, recordings, turns)
    rows = "".join(
        f"<tr><td class={finding['severity']}>{finding['severity']}</td><td><code>{finding['check']}</code></td>"
        f"<td>{len(finding['rows'])}</td><td>{html.escape(finding['message'])}{players.of(finding)}</td></tr>"
        for finding in [*verdict["faults"], *verdict["warnings"]]
    )
    checked = ", ".join(f"{count} {name}" for name, count in verdict["checked"].items())
    kept_out = "".join(
        f"<li><code>{html.escape(name)}</code>: {', '.join(reasons)}</li>"
        for name, reasons in verdict["quarantined"].items()
    )
    renderer = ValidationResultsPageRenderer(run_info_at_end=True)
    pages = "".join(
        f"<details><summary>{name}</summary>{DefaultJinjaPageView().render(renderer.render(result))}</details>"
        for name, result in results.items()
    )
    table = f"<table><tr><th></th><th>check</th><th>rows</th><th>what, and the worst of it</th></tr>{rows}</table>"
    quarantine = f"<h2>In quarantine</h2><ul>{kept_out}</ul>" if kept_out else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>VoiceFlow validate</title><style>{STYLE}</style>"
        f"<h1>Data {'accepted' if verdict['passed'] else 'refused'}</h1>"
        f"<p>checked: {checked}; {verdict['hours']:.2f} h</p>"
        f"{table if rows else '<p>nothing found</p>'}{quarantine}"
        f"<h2>Great Expectations</h2>{pages}</html>"
    )


class _Players:
    """Excerpts of the worst rows, as players that carry their sound."""

    def __init__(self, places: Mapping[str, AudioPlace], recordings: Sequence[Row], turns: Sequence[Row]) -> None:
        self._places = places
        self._recordings = {row["name"]: row for row in recordings}
        self._turns = {row["name"]: row for row in turns}
        self._num_left = MAX_PLAYERS

    def of(self, finding: dict[str, Any]) -> str:
        """HTML of the players of a finding; "" where its rows have no sound."""
        found = []
        for name in finding["rows"][:PLAYERS]:
            place = self._place(finding["table"], name)
            if place is not None and self._num_left > 0 and (sound := _excerpt(*place)):
                self._num_left -= 1
                found.append(
                    f"<br><small>{html.escape(name)}, from {place[1]:.1f} s</small> "
                    f'<audio controls preload=none src="data:audio/flac;base64,{sound}"></audio>'
                )
        return "".join(found)

    def _place(self, table: str, name: str) -> tuple[AudioPlace, float] | None:
        """File of a row, and where in it to listen."""
        if table == "recordings":
            row = self._recordings[name]
            return self._places[name], row["at_s"] if row["turn_unit"] == "seconds" else 0.0
        if table == "turns":
            turn = self._turns[name]
            return self._places[turn["recording"]], turn["at_s"]
        if table == "speakers":
            for recording in self._recordings.values():
                if name in recording["turn_speakers"]:
                    own = [turn for turn in self._turns.values() if turn["recording"] == recording["name"]]
                    own = [turn for turn in own if turn["speaker"] == name]
                    return self._places[recording["name"]], max(own, key=lambda turn: turn["duration_s"])["at_s"]
        return None


def _excerpt(place: AudioPlace, at_s: float) -> str:
    """A mono excerpt from shortly before `at_s`, as FLAC in base64; "" where the file cannot be read."""
    import soundfile

    try:
        samples_NC, rate_hz = read_file(place.source())
    except VoiceflowError:
        return ""
    start = int(max(0.0, min(at_s - EXCERPT_S / 5, len(samples_NC) / rate_hz - EXCERPT_S)) * rate_hz)
    excerpt_N = np.nan_to_num(samples_NC[start : start + int(EXCERPT_S * rate_hz)].mean(axis=1))
    file = io.BytesIO()
    soundfile.write(file, np.clip(excerpt_N, -1.0, 1.0), rate_hz, format="FLAC", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()
