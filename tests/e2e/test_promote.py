"""The real command on a real MLflow server; the whole list of bad models is `make acceptance PART=rollout`."""

import contextlib
import json
import os
import shutil
import socket

import httpx
import pytest

from benchmarks.bad_models import BAD
from benchmarks.promotions import AROUND, Workplace, postgres, refusal
from manifests.check import render
from tests.conftest import small
from voiceflow.provenance import BILL, read_provenance
from voiceflow.stages.prepare import prepare

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def lenient(params, corpus, tmp_path_factory):
    """Eight conversations of 12 s, and gates that espeak's voices and a busy machine pass."""
    shorter = params.promote.model_copy(update={"long_stream_s": 60.0, "long_from_s": 40.0, "max_slowdown": 100.0})
    easier = params.evaluate.model_copy(update={"max_der": 0.9, "max_der_per_slice": 1.0, "max_flips_per_minute": 60.0})
    slower = params.latency.model_copy(update={"max_p99_ms": {"cpu": {"1": 10_000.0}}, "min_streams_per_core": 0.1})
    values = small(params.model_copy(update={"promote": shorter, "evaluate": easier, "latency": slower}))
    counts = values.prepare.conversations.model_copy(update={"test": 8})
    config = values.prepare.model_copy(update={"conversations": counts})
    dataset = tmp_path_factory.mktemp("conversations") / "prepared"
    prepare(config, dataset, corpus=corpus, revision="tests")
    return dataset, values.model_copy(update={"prepare": config})


@pytest.fixture(scope="module")
def place(lenient, tmp_path_factory):
    """MLflow on SQLite, manifests in git."""
    place = Workplace(tmp_path_factory.mktemp("promote") / "place", *lenient)
    place.set_up()
    yield place
    place.close()


def test_promotion_and_rollback_on_postgres(lenient, tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres", numbered=True)
    # Its account has to get there.
    for path in (folder, *(parent for parent in folder.parents if parent.name.startswith(("pytest-", "popen-")))):
        path.chmod(0o755)
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(postgres(folder / "database"))
        except FileNotFoundError as err:
            pytest.skip(str(err))
        place = Workplace(folder / "place", *lenient, store=store)
        stack.callback(place.close)
        place.set_up()
        before = place.state()
        code, told = place.run("promote", "--accept-equal", files=place.candidate(version="0.3.0"))
        assert code == 0, told
        promoted = place.state()
        assert promoted["aliases"] == {"champion": "2", "challenger": None, "previous": "1"}
        assert place.run("rollback", "--why", "a test")[0] == 0
        assert place.state()["aliases"] == {"champion": "1", "challenger": None, "previous": "2"}
        with place.mlflow.client() as registry:
            assert [entry["action"] for entry in registry.audit_log()] == ["begin", "promote", "rollback"]
        told = os.popen(f"git -C {place.manifests.parent} diff -U0 {before['head']} {promoted['head']}").read()
        lines = [line[1:].partition("=")[0] for line in told.splitlines() if line.startswith("+") and "=" in line]
        assert lines == ["storageUri", "digest", "version"]


def test_promotion_and_rollback_move_aliases_and_three_lines_of_a_manifest(place):
    files = place.candidate(version="0.3.0")
    code, told = place.run("promote", "--accept-equal", "--sign-key", str(place.private_key), files=files)
    assert code == 0, told
    assert place.state()["aliases"] == {"champion": "2", "challenger": None, "previous": "1"}
    deployed = (place.manifests / "overlays/local/model/model.env").read_text()
    with place.mlflow.client() as registry:
        tags, folder = registry.tags_of("2"), registry.download("2")
        assert deployed == f"storageUri={registry.storage_uri('2')}\ndigest={tags['digest']}\nversion=2\n"
    changed = os.popen(f"git -C {place.manifests.parent} show --format= --name-only HEAD").read().split()
    assert changed == ["manifests/overlays/local/model/model.env"]
    # What is registered is all that is known of the file, signed as a whole.
    stated = read_provenance(folder)
    assert stated.digest == tags["digest"]
    assert stated.data_revision == "tests"
    assert all(stated.gates.values())
    bom = json.loads((folder / BILL).read_text())
    assert bom["metadata"]["component"]["hashes"][0]["content"] == stated.digest
    assert bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert "becomes champion" in (folder / "card.md").read_text()
    assert (folder / "plots" / "der_by_slice.png").stat().st_size > 1000

    code, told = place.run("rollback", "--why", "it was too polite")
    assert code == 0, told
    assert place.state()["aliases"] == {"champion": "1", "challenger": None, "previous": "2"}
    assert "version=1\n" in (place.manifests / "overlays/local/model/model.env").read_text()
    code, told = place.run("history", "--json")
    log = json.loads(told[told.index("{") :])["log"]
    assert [(entry["action"], entry["from"], entry["to"]) for entry in log] == [
        ("begin", "", "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
    ]
    assert log[-1]["why"] == "it was too polite"
    assert all(entry["by"] and entry["when"] for entry in log)
    code, told = place.run("history")
    assert "it was too polite" in " ".join(told.split())


@pytest.mark.parametrize(
    "bad", [one for one in BAD if one.name in ("NaN weights", "11 MB", "swapped slots")], ids=lambda bad: bad.name
)
def test_a_bad_file_is_refused_and_nothing_changes(place, bad):
    files = place.candidate(bad.change)
    before = place.state()
    assert refusal(place, bad.says, *place.run("promote", "--accept-equal", files=files), before) == {}


@pytest.mark.parametrize("name", ["tampered file", "unsigned file", "MLflow down in the middle"])
def test_what_happens_around_a_file_is_noticed_and_nothing_changes(place, name):
    act, says = AROUND[name]
    code, told, before = act(place)
    assert refusal(place, says, code, told, before) == {}
    if name != "MLflow down in the middle":  # then nobody could write it down
        with place.mlflow.client() as registry:
            last = registry.audit_log()[-1]
        assert (last["action"], says in last["why"]) == ("refuse", True)


def test_a_promotion_that_died_is_put_right_by_the_next_command(place):
    with place.mlflow.client() as registry:
        before = {alias: registry.version_of(alias) for alias in ("champion", "previous")}
        # As a process leaves it that was killed in the middle: its number is nobody's now.
        version = registry.register(place.folder / "timed", tags={}, run_id=None)
        entry = {
            "action": "promote",
            "from": "1",
            "to": version,
            "by": "somebody",
            "when": "now",
            "why": "it is better",
        }
        owner = f"somebody@{socket.gethostname()}:4194305"
        registry._lock({"owner": owner, "before": json.dumps(before), "entry": json.dumps(entry)})
        registry.set_alias("champion", version)
    code, told = place.run("history", "--json")
    assert code == 0, told
    rows = json.loads(told[told.index("{") :])
    assert rows["log"][-1]["action"] == "promote undone"
    assert place.state()["aliases"]["champion"] == before["champion"]


def test_a_server_refuses_what_is_not_signed_and_tells_where_a_model_comes_from(place, start_server, tmp_path):
    with place.mlflow.client() as registry:
        folder = registry.download("2")
    env = {**os.environ, "VOICEFLOW_VERIFY_KEY": str(place.public_key)}
    port, _ = start_server("serving.transformer", "--model", str(folder), env=env)
    answer = httpx.get(f"http://127.0.0.1:{port}/v1/model").json()
    assert answer["provenance"]["digest"] == read_provenance(folder).digest
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    (changed / "provenance.json").write_text((changed / "provenance.json").read_text().replace("tests", "other"))
    for model, says in ((changed, "Hash mismatch"), ("pretrained", "the model is unsigned")):
        with pytest.raises(AssertionError, match=says):
            start_server("serving.transformer", "--model", str(model), env=env)
    wrong = {**os.environ, "VOICEFLOW_MODEL_DIGEST": "0" * 64}
    with pytest.raises(AssertionError, match="expected the file with digest"):
        start_server("serving.transformer", "--model", str(folder), env=wrong)


def test_what_cannot_be_done_is_told_before_anything_is_judged(place):
    for arguments, says, code in (
        (["--env", "nowhere"], "expected one of dev, local, production, staging", 2),
        (["99"], "has no version 99", 1),
        (["0123456789abcdef0123456789abcdef"], "has no run", 1),
    ):
        actual, told = place.run("promote", *arguments)
        assert (actual, says in " ".join(told.split())) == (code, True), told


def test_kserve_cannot_fetch_from_a_disk(place):
    files = place.candidate(version="0.9.0")
    before = place.state()
    code, told = place.run("promote", "--accept-equal", "--env", "staging", files=files)
    assert code == 2
    assert "KServe cannot fetch file://" in " ".join(told.split())
    assert place.state() == before


def test_overlays_name_the_promoted_model_everywhere(place):
    documents, failure = render(place.manifests / "overlays" / "local")
    assert not failure
    text = (place.manifests / "overlays/local/model/model.env").read_text()
    named = dict(line.split("=", 1) for line in text.split())
    (service,) = (one for one in documents if one["kind"] == "InferenceService")
    assert service["metadata"]["annotations"]["voiceflow.dev/model-version"] == named["version"]
    (container,) = service["spec"]["predictor"]["containers"]
    for variable, name in (("STORAGE_URI", "storageUri"), ("VOICEFLOW_MODEL_DIGEST", "digest")):
        assert {"name": variable, "value": named[name]} in container["env"]
