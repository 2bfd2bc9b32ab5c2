"""Webhooks: who is told what, over real HTTP; and that a hook can fail without the night."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from flows.night import Night
from flows.notifying import announce, announce_killed, check_hooks
from flows.preflight import preflight
from flows.recorded_night import run_recorded
from flows.stopping import DeadlineReached, NightSkipped
from infra import webhook
from infra.settings import read_settings
from infra.storage import FileStore, open_store
from tasks.corpus_stages import source_stage
from tasks.errors import StorageError
from tasks.inputs import find_inputs
from tasks.publish.run_history import killed_before
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe
from tasks.records import ModelRef
from tasks.run_records import EvaluatedModel, ExportResult, RunRecord
from tests.unit.artifact_factory import RECIPE, metrics, passed_gate
from tests.unit.report_factory import make_gate

SECRET_PATH = "/services/T0/planted-token"


@dataclass
class Team:
    """A chat server of this process, and what it was told."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    """Statuses of the next answers; 200 when there are none left."""
    told: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    team = Team()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            team.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = team.answers.pop(0) if team.answers else 200
            if status == 200:
                team.told.append(json.loads(body))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"{team.url}/elsewhere")
            self.end_headers()

        do_POST = do_GET = answer

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    team.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("TEAM_HOOK", team.url + SECRET_PATH)
    monkeypatch.setattr(webhook, "PAUSE_S", 0.01)
    yield team
    server.shutdown()
    thread.join()
    server.server_close()


def with_hooks(*hooks: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(RECIPE.model_dump() | {"notify": list(hooks)})


def make_record(
    status: Literal["done", "refused", "failed", "cancelled"],
    error: str | None = None,
    **outcomes: str,
) -> RunRecord:
    def model(name: str) -> EvaluatedModel:
        ref = ModelRef(uri="x", digest="d" * 64, architecture="L", num_parameters=9, num_bytes=18)
        made_by = f"quantize {name}"
        return EvaluatedModel(
            title=name, kind="export", made_by=made_by, model=ref, metrics=metrics(3.25)
        )

    return RunRecord(
        recipe="tiny",
        run_id="20261121T020000Z-abc123",
        started="2026-11-21T02:00:00+00:00",
        seconds=61.5,
        status=status,
        store_uri="s3://bucket/team",
        channel="nightly",
        stages=[],
        models=[model(name) for name in outcomes],
        exports=[
            ExportResult.model_validate(
                {
                    "export": name,
                    "gate": passed_gate() if outcome == "published" else make_gate(0.9, 10, None),
                    "outcome": outcome,
                    "artifact": None,
                }
            )
            for name, outcome in outcomes.items()
        ],
        error=error,
    )


def test_each_hook_hears_what_it_asked_for(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_HOOK", f"{team.url}/other")
    recipe = with_hooks(
        {"webhook_env": "TEAM_HOOK", "on": ["published", "refused"]},
        {"webhook_env": "OTHER_HOOK", "on": ["failed", "deadline"]},
    )
    announce(recipe, read_settings(), make_record("refused", int4="published", int8="refused"))
    assert team.requests == [f"POST {SECRET_PATH}"] * 2
    assert [told["event"] for told in team.told] == ["refused", "published"]
    refused = team.told[0]
    assert refused["recipe"] == "tiny"
    assert refused["run_id"] == "20261121T020000Z-abc123"
    assert refused["text"] == "nightpress: tiny refused: int4 published, int8 refused"
    int4, int8 = refused["exports"]
    assert (int4["outcome"], int4["num_bytes"], int4["nats_per_token"]) == ("published", 18, 3.25)
    assert "the limit is" in int8["reasons"][0] and int4["reasons"] == []
    assert refused["report_uri"] == (
        "s3://bucket/team/runs/tiny/20261121T020000Z-abc123/report.html"
    )
    announce(recipe, read_settings(), make_record("failed", error="StorageError: full\nmore"))
    assert team.requests[2:] == ["POST /other"]
    assert team.told[2]["text"] == "nightpress: tiny failed: StorageError: full"


def test_a_night_without_news_is_silent(team: Team) -> None:
    recipe = with_hooks({"webhook_env": "TEAM_HOOK", "on": ["published", "failed"]})
    announce(recipe, read_settings(), make_record("done", int4="unchanged"))
    assert team.requests == []


@pytest.mark.parametrize(
    ("answers", "num_requests", "warning"),
    [
        ([503], 2, None),
        ([429, 500], 2, "the server answered 500"),
        ([404], 1, "the server answered 404"),
        ([302], 1, "the server answered 302"),
    ],
)
def test_one_retry_where_it_may_pass(
    team: Team,
    answers: list[int],
    num_requests: int,
    warning: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    team.answers = answers
    recipe = with_hooks({"webhook_env": "TEAM_HOOK", "on": ["published"]})
    announce(recipe, read_settings(), make_record("done", int4="published"))
    assert team.requests == [f"POST {SECRET_PATH}"] * num_requests
    said = capsys.readouterr().err
    assert warning in said if warning else said == ""
    assert len(team.told) == (warning is None)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/planted-token",
        "file:///etc/planted-token",
        "http://127.0.0.1:planted-token/",
        "http://[planted-token/",
        "http://127.0.0.1/planted-token with space\n",
        "planted-token",
    ],
)
def test_a_hook_that_cannot_be_told_is_a_warning_without_its_url(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webhook, "PAUSE_S", 0.01)
    monkeypatch.setenv("TEAM_HOOK", url)
    recipe = with_hooks({"webhook_env": "TEAM_HOOK", "on": ["failed"]})
    announce(recipe, read_settings(), make_record("failed", error="boom"))
    said = capsys.readouterr().err
    assert "warning: failed was not told to the webhook in TEAM_HOOK" in said
    assert "planted-token" not in said
    assert "planted-token" not in repr(read_settings())


def test_a_night_that_fails_before_it_begins_is_told_as_well(
    team: Team, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTPRESS_STORE", "file:///proc/absent")
    recipe = load_recipe(recipe_file, ["notify=[{webhook_env: TEAM_HOOK, on: [failed]}]"])
    with pytest.raises(ValueError, match="/proc/absent"):
        preflight(recipe)
    (told,) = team.told
    assert (told["event"], told["status"], told["run_id"]) == ("failed", "failed", None)
    assert told["text"].startswith("nightpress: tiny failed: disk: 0.0 GiB free at /proc/")
    assert told["report_uri"] is None and told["channel"] == "nightly"


def test_a_night_that_was_killed_is_told_of_by_the_next_one_and_by_no_other(
    team: Team, tmp_path: Path
) -> None:
    store = FileStore(f"file://{tmp_path}/store")
    recipe = with_hooks({"webhook_env": "TEAM_HOOK", "on": ["failed"]})
    first, killed, next_one, last = (f"2026112{n}T020000Z-aaaaaa" for n in range(4))
    for run_id in (first, killed, next_one):
        store.write(f"runs/tiny/{run_id}/recipe.yaml", b"name: tiny")
    for run_id in (first, next_one):
        store.write(f"runs/tiny/{run_id}/run.json", b"{}")
    assert killed_before(store, "tiny", first) is None
    assert killed_before(store, "tiny", killed) is None
    assert killed_before(store, "tiny", last) is None
    found = killed_before(store, "tiny", next_one)
    assert found is not None and found.run_id == killed
    announce_killed(recipe, read_settings(), found)
    (told,) = team.told
    assert (told["event"], told["run_id"]) == ("failed", killed)
    assert told["text"] == (
        "nightpress: tiny failed: the night of 2026-11-21T02:00:00+00:00 left no record of its "
        "end: it was killed, or its store refused to take one"
    )


def test_a_night_that_cannot_be_opened_is_told_and_one_that_is_skipped_is_not(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_hooks({"webhook_env": "TEAM_HOOK", "on": ["failed", "deadline"]})
    endings: list[Exception] = [
        NightSkipped("another night is running"),
        DeadlineReached("the deadline came before the end"),
        StorageError("credentials refused", "look at planted-token"),
    ]

    @contextmanager
    def never_opens(recipe: Recipe) -> Iterator[Night]:
        raise endings[0]
        yield

    monkeypatch.setenv("OTHER_TOKEN", "planted-token")
    monkeypatch.setattr("flows.recorded_night.open_night", never_opens)
    while endings:
        with pytest.raises(type(endings[0])):
            run_recorded(recipe, [], lambda night: make_record("done"))
        del endings[0]
    assert [told["event"] for told in team.told] == ["deadline", "failed"]
    assert team.told[1]["text"] == "nightpress: tiny failed: credentials refused"
    assert "[OTHER_TOKEN]" in team.told[1]["error"]


def test_a_cancelled_night_is_told_to_who_hears_of_failures(team: Team) -> None:
    recipe = with_hooks({"webhook_env": "TEAM_HOOK", "on": ["failed"]})
    announce(recipe, read_settings(), make_record("cancelled", error="cancelled before its end"))
    (told,) = team.told
    assert (told["event"], told["status"]) == ("failed", "cancelled")
    assert told["text"] == "nightpress: tiny failed: cancelled before its end"


def test_a_hook_that_does_not_answer_is_left_in_time(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        problem = webhook.post_json(url, {}, timeout_s=0.1)
    assert problem == "there was no answer (TimeoutError, limit 0.1 s)"


def test_a_variable_that_is_not_set_is_a_warning_of_preflight(
    monkeypatch: pytest.MonkeyPatch, team: Team
) -> None:
    recipe = with_hooks({"webhook_env": "TEAM_HOOK", "on": ["failed"]})
    assert [finding.level for finding in check_hooks(recipe, read_settings())] == ["ok"]
    monkeypatch.delenv("TEAM_HOOK")
    (finding,) = check_hooks(recipe, read_settings())
    assert (finding.level, finding.name) == ("warning", "notify")
    assert "TEAM_HOOK is not set" in finding.message
    assert check_hooks(RECIPE, read_settings()) == []


def test_hooks_are_read_from_yaml_and_in_no_key(recipe_file: Path, tmp_path: Path) -> None:
    """A bare `on` is true to YAML 1.1, and the key of a list all the same to its reader."""

    def key(text: str) -> str:
        recipe_file.write_text(text)
        recipe = load_recipe(recipe_file)
        inputs = find_inputs(recipe, open_store(f"file://{tmp_path}/store"))
        return source_stage(recipe, 1, inputs.teacher, inputs.sources[0]).key

    plain = recipe_file.read_text()
    hooks = "notify: [{webhook_env: TEAM_HOOK, on: [failed, published]}]\n"
    assert key(plain) == key(plain + hooks)
    assert load_recipe(recipe_file).notify[0].on == ["failed", "published"]


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("{webhook_env: 'https://hooks.example/x', on: [failed]}", "webhook_env"),
        ("{webhook_env: TEAM_HOOK, on: [faild]}", "'failed', 'refused', 'deadline'"),
        ("{webhook_env: TEAM_HOOK, on: []}", "at least 1 item"),
        ("{webhook_env: TEAM_HOOK, url: x, on: [failed]}", "unknown key; known here: on, webhook"),
    ],
)
def test_a_wrong_hook_says_what_would_be_right(recipe_file: Path, hook: str, message: str) -> None:
    recipe_file.write_text(f"{recipe_file.read_text()}notify: [{hook}]\n")
    with pytest.raises(ValueError, match="notify") as caught:
        load_recipe(recipe_file)
    assert message in str(caught.value)
