"""Workflows, compose and Dockerfiles, as far as they can be judged without running them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from voiceflow.cli.main import app

REPO = Path(__file__).parents[2]
WORKFLOWS = sorted((REPO / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((REPO / "images").glob("*.Dockerfile"))
SCRIPTS = sorted((REPO / "images").glob("*.sh"))


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_and_compose_are_what_their_schemas_say():
    check = (sys.executable, "-m", "check_jsonschema", "--builtin-schema")
    run(*check, "vendor.github-workflows", *map(str, WORKFLOWS))
    run(*check, "vendor.compose-spec", "compose.yaml")


def test_workflows_have_no_known_weakness():
    run(str(Path(sys.executable).with_name("zizmor")), "--offline", "--no-progress", ".github/workflows")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_pinned_and_asks_for_little(path):
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (\S+)@(\S+)", path.read_text())
    assert used
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for _, revision in used)
    assert all("timeout-minutes" in job for job in content["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_of_a_workflow_exist(path):
    """Each `voiceflow` command that it runs is one, and has those flags."""
    commands = get_command(app).commands
    for line in re.findall(r"\.venv/bin/voiceflow (.+?)(?: && |$)", path.read_text(), flags=re.M):
        name, *words = shlex.split(line.replace("${VERSION:+--to ", "--to ").replace("}", ""))
        command = commands[name]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= flags, line


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_only_copies_and_runs_scripts_and_is_not_root(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        word, rest = line.split(" ", 1)
        assert word in ("FROM", "WORKDIR", "COPY", "RUN", "ARG", "ENV", "USER", "EXPOSE", "CMD"), line
        if word == "FROM":
            assert re.search(r":\d+\.\d+\.\d+", rest), f"{rest} is not pinned"
        if word == "RUN":
            assert re.match(r"(images|/tmp)/\w+\.sh ", rest), line
    assert sum(line.startswith("FROM") for line in lines) == 2
    assert "USER 10001:10001" in lines
    kind = path.stem
    assert f"RUN images/install.sh {kind} /opt/voiceflow" in lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_of_an_image_says_what_it_expects(script):
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected serving, serving-gpu or pipelines" in done.stderr


def test_compose_and_manifests_name_the_same_images():
    images = {service["image"] for service in yaml.safe_load((REPO / "compose.yaml").read_text())["services"].values()}
    placed = (REPO / "manifests/components/images/kustomization.yaml").read_text()
    for image in (one for one in images if one.startswith("ghcr.io/voiceflow")):
        name, tag = image.split(":")
        assert f"{{name: {name}, newTag: {tag}}}" in placed
    assert all(":" in image and not image.endswith(":latest") for image in images)


DOCS = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_the_commands_of_a_page_exist(path):
    """Each `voiceflow` command in a block of code is one, and has those flags."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    for line in re.findall(r"^voiceflow (.+)$", "\n".join(blocks), flags=re.M):
        words = line.split("#")[0].replace("[", " ").replace("]", " ").split()
        command = get_command(app)
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not get_command(app), line
        flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= flags | {"--help"}, line
