"""What list, show, pull, runs, promote, rollback and gc answer to names that are wrong or gone."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from flows import command_line
from infra.lease import take_lease
from infra.storage import FileStore
from tasks.publish.manifest import Manifest
from tests.unit.artifact_factory import store_artifact, write_files

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path / 'store'}")


@pytest.fixture
def published(store: FileStore, tmp_path: Path) -> list[Manifest]:
    """Two of int4, the second served, and one of int8."""
    folders = [write_files(tmp_path / name, name, 1) for name in "abc"]
    exports = ["int4", "int4", "int8"]
    return [store_artifact(store, f, export) for f, export in zip(folders, exports, strict=True)]


@pytest.fixture
def command(
    store: FileStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs the command in this process; returns exit code, stdout and stderr."""
    monkeypatch.setenv("NIGHTPRESS_STORE", store.uri)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its handlers

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nightpress", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        code = ended.value.code
        return int(code or 0), out, err

    return run


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("tinny", "no artifacts of recipe 'tinny' in {uri}; did you mean 'tiny'? choose from"),
        ("tiny/int44", "tiny has no export 'int44'; did you mean 'int4'? choose from ['int4', "),
        ("tiny/int4@nighlty", "tiny/int4 has nothing on channel 'nighlty'; did you mean 'nightly'"),
        ("tiny@stable", "tiny has nothing on channel 'stable'; choose from ['nightly']"),
        (
            "tiny@sha256:" + "0" * 12,
            "tiny has no artifact sha256:000000000000; choose from ['int4@",
        ),
        (
            "tiny@sha256:0000",
            "expected RECIPE[/EXPORT][@CHANNEL | @sha256:<12 or more hex digits>]",
        ),
        ("Tiny", "expected RECIPE[/EXPORT]"),
    ],
)
@pytest.mark.parametrize("verb", ["show", "pull", "promote"])
def test_a_name_that_is_not_there_is_told_with_those_that_are(
    verb: str,
    reference: str,
    told: str,
    command: Command,
    store: FileStore,
    published: list[Manifest],
    tmp_path: Path,
) -> None:
    more = {"pull": ["model"], "promote": ["--channel", "stable", "--why", "x"]}.get(verb, [])
    code, out, err = command(verb, reference, *more)
    assert (code, out) == (2, "")
    assert told.format(uri=store.uri) in err
    assert not (tmp_path / "model").exists()


def test_an_empty_store_says_so(command: Command) -> None:
    assert "no artifacts of recipe 'tiny' in " in command("show", "tiny")[2]
    assert "there is none yet" in command("show", "tiny")[2]
    assert command("list")[:2] == (0, "no artifacts\n")


def test_an_ambiguous_digest_names_the_candidates(
    command: Command, store: FileStore, published: list[Manifest]
) -> None:
    manifest = published[0]
    twin = manifest.digest[:12] + "f" * 52
    shutil.copytree(store.root / manifest.prefix, store.root / f"artifacts/tiny/int4/{twin}")
    code, _, err = command("show", f"tiny@sha256:{manifest.digest[:12]}")
    assert code == 2
    assert "could be any of" in err and twin in err and manifest.digest in err


def test_a_channel_that_serves_what_is_gone_says_what_helps(
    command: Command, store: FileStore, published: list[Manifest], tmp_path: Path
) -> None:
    first, second, _ = published
    shutil.rmtree(store.root / second.prefix)
    code, _, err = command("pull", "tiny/int4", "model")
    assert code == 1
    assert f"tiny/int4@nightly serves sha256:{second.digest[:12]}, and the store has no such" in err
    assert "(entry 2, publish by test at " in err
    assert "nightpress rollback tiny/int4@nightly --why" in err
    code, out, _ = command("rollback", "tiny/int4@nightly", "--why", "it is gone")
    assert code == 0
    assert out.startswith(f"tiny/int4@nightly serves sha256:{first.digest[:12]} instead of ")
    assert command("pull", "tiny/int4", "model")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rollback", "tiny/int4@sha256:" + "a" * 12], "a channel, got 'tiny/int4@sha256:"),
        (["rollback", "tiny/int4@stabel"], "tiny/int4 has nothing on channel 'stabel'"),
        (["rollback", "tiny/int8"], "has no earlier artifact to roll back to; its history has 1"),
        (["promote", "tiny/int4", "--channel", "nightly"], "@nightly serves sha256:"),
        (
            ["promote", "tiny/int4", "--channel", "../../x"],
            "expected the channel's name, lower-case",
        ),
        (
            ["promote", "tiny/int4", "--channel", "Stable"],
            "expected the channel's name, lower-case",
        ),
    ],
)
def test_what_a_person_decides_wrongly_changes_nothing(
    arguments: list[str], told: str, command: Command, store: FileStore, published: list[Manifest]
) -> None:
    before = store.list("")
    code, out, err = command(*arguments, "--why", "x")
    assert (code, out) == (2, "")
    assert told in err
    assert store.list("") == before


def test_runs_of_a_recipe_that_has_none_are_told_with_those_that_have(
    command: Command, store: FileStore
) -> None:
    store.write("runs/tiny/20261121T020000Z-aaaaaa/run.json", b"{}")
    assert "no runs of recipe 'tinny'" in command("runs", "tinny")[2]
    assert "did you mean 'tiny'?" in command("runs", "tinny")[2]
    assert command("runs", "../x")[0] == 2
    code, _, err = command("runs", "tiny")
    assert code == 1
    assert "run.json: recipe: Field required\n  repair the object or remove it" in err


def test_a_night_that_was_killed_is_seen(command: Command, store: FileStore) -> None:
    ids = ["20261120T020000Z-aaaaaa", "20261121T020000Z-bbbbbb"]
    for run_id in ids:
        store.write(f"runs/tiny/{run_id}/recipe.yaml", b"name: tiny")
    lease = take_lease(store, "leases/tiny", ids[1])
    shown = json.loads(command("runs", "tiny", "--json")[1])
    assert shown["runs"] == []
    assert [(run["run_id"], run["status"]) for run in shown["unfinished"]] == [
        (ids[1], "running"),
        (ids[0], "killed"),
    ]
    assert shown["unfinished"][1]["started"] == "2026-11-20T02:00:00+00:00"
    code, out, _ = command("runs", "tiny")
    assert code == 0 and out.index("running") < out.index("killed")
    lease.release()
    assert command("runs", "tiny")[1].count("killed") == 2


def test_a_stranger_writes_nothing_to_the_terminal(
    command: Command, store: FileStore, published: list[Manifest]
) -> None:
    store.write("channels/tiny/int4/nightly/00.json", b'{"\\u001b[2J": 1}')
    code, _, err = command("show", "tiny/int4")
    assert code == 1 and "\x1b" not in err


def test_a_published_manifest_fits_its_schema(
    command: Command, store: FileStore, published: list[Manifest]
) -> None:
    schema = json.loads(command("schema", "manifest")[1])
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for manifest in published:
        document = json.loads(store.read(f"{manifest.prefix}/manifest.json"))
        validator.validate(document)
        for key in ("digest", "files", "provenance", "metrics", "gate", "stages", "parent"):
            broken = document | {key: 7}
            assert not validator.is_valid(broken), key
            without = {name: value for name, value in document.items() if name != key}
            assert not validator.is_valid(without), key
