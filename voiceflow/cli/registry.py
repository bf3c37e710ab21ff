"""`voiceflow promote` and `voiceflow history`: the model registry."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from voiceflow.cli.console import emit_json, out, percent
from voiceflow.cli.stages import DATASET, MODELS, REPORTS
from voiceflow.config import load_params


def promote(
    accept_equal: Annotated[
        bool, typer.Option(help="Let a model that is not worse, but not better, be champion.")
    ] = False,
    dataset: Annotated[Path, typer.Option(help="The prepared dataset.")] = DATASET,
    models: Annotated[Path, typer.Option(help="Folder of trained and exported models.")] = MODELS,
    reports: Annotated[Path, typer.Option(help="Folder of reports.")] = REPORTS,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Register the exported model and move aliases, if its gates and the champion let it."""
    from voiceflow.adapters.registry import MlflowRegistry
    from voiceflow.stages.export import FILES
    from voiceflow.stages.promote import promote as run

    values = load_params()
    summary = run(
        values.promote,
        values.evaluate,
        models / "exported" / FILES["int8"],
        dataset,
        {
            "evaluate": reports / "evaluate" / "metrics.json",
            "export": models / "exported" / "export.json",
            "latency": reports / "latency" / "latency.json",
        },
        reports / "promote",
        MlflowRegistry(),
        accept_equal=accept_equal,
    )
    if json_:
        emit_json(summary)
    else:
        out.print(
            f"version {summary['version']} becomes {summary['becomes']}; champion is version {summary['champion']}"
        )
        for reason in summary["reasons"]:
            out.print(f"  {reason}", markup=False)
    if summary["becomes"] == "nothing":
        raise typer.Exit(1)


def history(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Versions of the model, their aliases and figures."""
    import json

    from rich.table import Table

    from voiceflow.adapters.registry import MlflowRegistry

    rows = MlflowRegistry().history()
    if json_:
        emit_json(rows)
        return
    table = Table("version", "aliases", "made", "DER", "decision", "data", "commit")
    for row in rows:
        tags = row["tags"]
        der = json.loads(tags.get("der", "{}")).get("overall")
        table.add_row(
            row["version"],
            ", ".join(row["aliases"]),
            datetime.fromtimestamp(row["created_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
            "" if der is None else percent(der),
            tags.get("decision", ""),
            tags.get("data_revision", "")[:12],
            tags.get("git_commit", "")[:12],
        )
    out.print(table)
