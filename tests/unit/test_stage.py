"""The stage mechanism: keys, hits, adoption, resume, and what enters a key."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.local_executor import LocalExecutor
from infra.storage import open_store
from tasks import stage as stage_module
from tasks.code_version import code_version, imported_files, module_file
from tasks.records import TextRef
from tasks.stage import Stage, clear_scratch, read_completion, run_stage
from tasks.stage_space import StageSpace
from tests.unit.stage_space import make_space

CALLS: list[str] = []


def write_letters(space: StageSpace, options: dict[str, Any], *, text: TextRef) -> TextRef:
    """A stage for tests: one unit of work a letter."""
    parts = space.compute_units(shout, list(options["letters"]), str, group="letters")
    (space.out / "letters.txt").write_bytes(b"".join(parts))
    return TextRef(uri=space.output_uri("letters.txt"), digest="d", num_bytes=len(parts))


def shout(state: str, letter: str) -> bytes:
    if letter == "!" and "!" not in CALLS:
        CALLS.append("!")
        raise KeyboardInterrupt
    CALLS.append(letter)
    return letter.upper().encode()


@pytest.fixture
def space_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Stage], Any]:
    CALLS.clear()
    monkeypatch.setattr(
        stage_module.importlib, "import_module", lambda name: __import__("sys").modules[__name__]
    )
    store = open_store(f"file://{tmp_path}/store")

    def run(stage: Stage) -> Any:
        return run_stage(stage, store, LocalExecutor(), lambda done, total: None, tmp_path / "s")

    run.store = store  # type: ignore[attr-defined]
    return run


def letters(text: str, digest: str = "a") -> Stage:
    return Stage(
        name="letters",
        entry="tasks.stage:write_letters",
        options={"letters": text},
        inputs={"text": TextRef(uri="anywhere", digest=digest, num_bytes=1)},
    )


def test_a_stage_runs_once_and_is_then_a_hit(space_of: Any) -> None:
    first, cached = space_of(letters("abc"))
    assert not cached and CALLS == ["a", "b", "c"]
    second, cached = space_of(letters("abc"))
    assert cached and second == first and CALLS == ["a", "b", "c"]
    output = space_of.store.local_folder(first.record["uri"].removeprefix("store://"))
    assert output.read_bytes() == b"ABC"


def test_a_completion_tells_the_peak_memory_where_a_worker_ran(space_of: Any) -> None:
    """And the node, even where nobody but the driver worked."""
    first, _ = space_of(letters("abc"))
    assert first.peak_bytes > 2**20  # an interpreter at least
    key = f"stages/letters/{letters('abc').key}/complete.json"
    space_of.store.delete(key)
    again, cached = space_of(letters("abc"))  # all units are stored: nobody works
    assert not cached and again.peak_bytes is None
    assert again.nodes == [socket.gethostname()]


def test_a_completion_of_before_peaks_were_measured_still_reads(space_of: Any) -> None:
    first, _ = space_of(letters("abc"))
    key = f"stages/letters/{letters('abc').key}/complete.json"
    known = json.loads(space_of.store.read(key))
    del known["peak_bytes"]
    space_of.store.write(key, json.dumps(known).encode())
    second, cached = space_of(letters("abc"))
    assert cached and second == first.model_copy(update={"peak_bytes": None})


def test_an_interrupted_stage_repeats_only_the_unit_that_was_lost(space_of: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        space_of(letters("ab!c"))
    completion, cached = space_of(letters("ab!c"))
    assert not cached and CALLS == ["a", "b", "!", "!", "c"]
    assert list(completion.files) == ["letters.txt"]


def test_an_attempt_that_comes_second_adopts_the_first(space_of: Any) -> None:
    stage = letters("xy")
    first, _ = space_of(stage)
    key = f"stages/letters/{stage.key}/complete.json"
    kept = space_of.store.read(key)

    late = stage_module.Completion(**(json.loads(kept) | {"attempt": "late"}))
    assert not space_of.store.create(key, late.model_dump_json().encode())
    found = read_completion(space_of.store, stage)
    assert found is not None and found.attempt == first.attempt


def test_the_key_follows_options_and_digests_but_not_places() -> None:
    base = letters("abc")
    assert base.key != letters("abd").key
    assert base.key != letters("abc", digest="b").key
    moved = Stage(
        base.name,
        base.entry,
        base.options,
        {"text": TextRef(uri="elsewhere", digest="a", num_bytes=1)},
    )
    assert moved.key == base.key


def test_scratch_space_is_gone_afterwards(space_of: Any, tmp_path: Path) -> None:
    space_of(letters("a"))
    assert list((tmp_path / "s").iterdir()) == []


def test_scratch_space_of_the_dead_is_cleared(tmp_path: Path) -> None:
    alive = tmp_path / f"prune-{os.getpid()}-abc"
    dead = tmp_path / "prune-99999999-abc"
    for folder in (alive, dead):
        folder.mkdir()
        (folder / "file").touch()
    clear_scratch(tmp_path)
    assert alive.exists() and not dead.exists()


def test_code_version_follows_imports_of_ours_but_not_type_checking_ones() -> None:
    source = module_file("tasks.corpus.building")
    assert source is not None
    found = {path.name for path in imported_files(source)}
    assert {"packing.py", "task_text.py"} <= found
    assert "stage.py" not in found  # imported for its types alone


def test_a_plugins_source_enters_the_key_only_where_it_is_chosen() -> None:
    source = module_file("tasks.corpus.building")
    filters = module_file("tasks.corpus.filters.length")
    assert source is not None and filters is not None
    assert code_version([source]) != code_version([source, filters])
    assert module_file("torch") is None


def test_units_stream_in_their_order_and_only_one_is_read_at_a_time(tmp_path: Path) -> None:
    CALLS.clear()
    space = make_space(tmp_path / "store", tmp_path / "scratch")
    parts = space.stream_units(shout, list("abc"), str, group="letters")
    assert next(parts) == b"A"
    assert CALLS == ["a", "b", "c"]
    space.store.delete(f"{space.prefix}/units/letters/000002")
    assert next(parts) == b"B"
    with pytest.raises(FileNotFoundError):
        next(parts)
