"""The card of a judged model: what it is, how it compares with the champion, which gates it passed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voiceflow.stages.plots import new_figure, save_figure

WORDS = {"champion": "becomes champion", "challenger": "becomes challenger", "nothing": "is refused"}


def write_card(summary: Mapping[str, Any], latency: Mapping[str, Any], output: Path) -> None:
    """card.md, card.json and plots/*.png.

    Args:
        summary: The content of promote.json.
        latency: The content of latency.json; empty where nobody measured.
        output: Folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "card.json").write_text(json.dumps({**summary, "latency": latency}, indent=2) + "\n", encoding="utf-8")
    _plot_slices(summary["slices"], output / "plots" / "der_by_slice.png")
    if summary["by_latency"]:
        _plot_latencies(summary["by_latency"], output / "plots" / "der_by_latency.png")
    if latency:
        _plot_batches(latency["batches"], output / "plots" / "latency_by_batch.png")
    (output / "card.md").write_text(_markdown(summary, latency), encoding="utf-8")


def _markdown(summary: Mapping[str, Any], latency: Mapping[str, Any]) -> str:
    metadata = summary["metadata"]
    lines = [
        f"# {metadata['name']} {metadata['version']}",
        "",
        f"The file with digest `{summary['digest'][:16]}` {WORDS[summary['becomes']]}:",
        "",
        *[f"- {reason}" for reason in summary["reasons"]],
        "",
        "## Gates",
        "",
        "| gate | verdict | figures | reasons |",
        "|---|---|---|---|",
    ]
    for gate in summary["gates"]:
        told = ", ".join(f"{name} {_short(value)}" for name, value in list(gate["figures"].items())[:6])
        verdict = "passed" if gate["passed"] else "**refused**"
        lines.append(f"| {gate['gate']} | {verdict} | {told} | {'; '.join(gate['reasons'])} |")
    lines += [
        "",
        f"## DER beside champion {summary['champion_before']}",
        "",
        "Strict: no collar, overlap scored, labels as first told. Gain is in points, with its interval by paired",
        "bootstrap over the same conversations.",
        "",
        "| slice | conversations | champion | candidate | gain | interval | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in summary["slices"].items():
        compared = summary["comparison"].get(name)
        gain = [f"{100 * compared[key]:+.1f}" for key in ("gain", "low", "high")] if compared else ["", "", ""]
        interval = f"{gain[1]} to {gain[2]}" if compared else "too few to judge by"
        lines.append(
            f"| {name} | {row['recordings']} | {100 * row['champion']:.1f} % | {100 * row['candidate']:.1f} % | "
            f"{gain[0]} | {interval} | {compared['verdict'] if compared else ''} |"
        )
    lines += ["", "![DER by slice](plots/der_by_slice.png)"]
    if summary["by_latency"]:
        lines += ["", "![DER against latency](plots/der_by_latency.png)"]
    if latency:
        lines += [
            "",
            f"## A step on {latency['device_name']}",
            "",
            "| batch | p50 ms | p99 ms | us a stream |",
            "|---|---|---|---|",
            *[
                f"| {batch} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['us_per_stream']:.1f} |"
                for batch, row in latency["batches"].items()
            ],
            "",
            "![latency by batch](plots/latency_by_batch.png)",
        ]
    made = {name: metadata[name] for name in ("data_revision", "git_commit", "run_id", "precision", "contract_version")}
    lines += ["", "## Made from", "", *[f"- {name.replace('_', ' ')}: `{value}`" for name, value in made.items()], ""]
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plot_slices(slices: Mapping[str, Mapping[str, float]], path: Path) -> None:
    figure, axes = new_figure(1, 1)
    places = range(len(slices))
    for offset, name in ((-0.2, "champion"), (0.2, "candidate")):
        axes.barh([place + offset for place in places], [100 * row[name] for row in slices.values()], 0.4, label=name)
    axes.set(yticks=list(places), yticklabels=list(slices), xlabel="DER, % (no collar, overlap scored)")
    axes.legend()
    save_figure(figure, path)


def _plot_latencies(ders: Mapping[str, Mapping[str, float]], path: Path) -> None:
    figure, axes = new_figure(1, 1)
    latencies: Sequence[str] = list(ders)
    for name in ("champion", "candidate"):
        axes.plot([float(one) for one in latencies], [100 * ders[one][name] for one in latencies], "o-", label=name)
    axes.set(xlabel="latency, s", ylabel="DER, %")
    axes.legend()
    save_figure(figure, path)


def _plot_batches(batches: Mapping[str, Mapping[str, float]], path: Path) -> None:
    figure, axes = new_figure(1, 1)
    for name in ("p50_ms", "p99_ms"):
        axes.plot([int(batch) for batch in batches], [row[name] for row in batches.values()], "o-", label=name[:3])
    axes.set(xscale="log", yscale="log", xlabel="streams in a step", ylabel="ms")
    axes.legend()
    save_figure(figure, path)
