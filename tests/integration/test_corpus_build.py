"""`nightpress corpus build`, killed while a source generates, comes to the same bytes."""

from pathlib import Path
from typing import Any

import pytest

from flows.make_corpus import make_corpus
from infra.local_executor import LocalExecutor
from infra.storage import FileStore
from tasks.inputs import find_inputs
from tasks.recipe_file import load_recipe
from tasks.records import CorpusRef
from tasks.stage import Stage, run_stage
from tests.integration.pipeline import Workplace

pytestmark = pytest.mark.integration

CHANGED = "corpus.sources.0.options.num_tokens=2048"


def test_a_killed_build_goes_on_to_the_same_bytes(
    shared_recipe: Path, tmp_path: Path, one_thread: None
) -> None:
    undisturbed = build_here(shared_recipe, tmp_path / "here")
    place = Workplace(tmp_path / "killed")
    sources = place.store / "stages" / "source"

    def written() -> dict[Path, int]:
        units = sources.glob("*/units/*/*")
        return {path: path.stat().st_mtime_ns for path in units if not path.name.startswith(".")}

    build = ["corpus", "build", shared_recipe, "--set", CHANGED]
    place.kill_when(lambda: bool(written()), *build)
    before = written()
    assert not list(sources.glob("*/complete.json"))
    record = place.run_json(*build, "--publish")
    assert record["corpus"]["corpus"]["digest"] == undisturbed.digest
    assert record["corpus"]["published"]["outcome"] == "published"
    after = written()
    assert len(after) > len(before) and all(after[path] == before[path] for path in before)
    shown = place.run_json("corpus", "show", *build[2:], "--samples", "2")
    assert shown["corpus"] == record["corpus"]["corpus"] and len(shown["samples"]) == 2


def build_here(recipe_file: Path, folder: Path) -> CorpusRef:
    """Build the corpus in this process, undisturbed."""
    recipe, store = load_recipe(recipe_file, [CHANGED]), FileStore(f"file://{folder}")

    def complete(title: str, stage: Stage, record_type: type[Any]) -> Any:
        done, _ = run_stage(
            stage, store, LocalExecutor(), lambda done, total: None, folder / "scratch"
        )
        return record_type(**done.record)

    inputs = find_inputs(recipe, store)
    return make_corpus(recipe, inputs, inputs.teacher, complete)
