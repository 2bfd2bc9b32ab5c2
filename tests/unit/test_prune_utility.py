"""Utilities by name: found without importing, in the stage's key; and the windows of a unit."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.preflight import check_utility
from tasks.outside_code import find_source, source_digest
from tasks.prune.sweep.sweep import FIT_PER_SCORED, choose_windows
from tasks.prune_options import PruneOptions
from tasks.recipe_file import load_recipe
from tasks.records import ModelRef, TextRef
from tasks.stages import prune_stage

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a source file into a folder on the path; importing any of them would raise."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def put(path: str, source: str) -> None:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(f"{source}\nraise RuntimeError('imported')\n")

    return put


def test_the_digest_covers_a_package_and_what_lies_beside_a_module(write: Write) -> None:
    write("np_lone.py", "def f():\n    from np_beside import x")
    write("np_beside.py", "x = 1")
    write("np_other.py", "x = 1")
    write("np_package/__init__.py", "")
    write("np_package/metrics.py", "x = 1")
    write("np_package/deep.py", "x = 1")

    def digests() -> list[str]:
        return [source_digest(f"{name}:f") for name in ("np_lone", "np_package.metrics")]

    seen = [digests()]
    for path, changes in [
        ("np_other.py", (False, False)),
        ("np_beside.py", (True, False)),
        ("np_package/deep.py", (False, True)),
    ]:
        write(path, "x = 22")
        seen.append(digests())
        assert tuple(a != b for a, b in zip(seen[-2], seen[-1], strict=True)) == changes
    assert not {"np_lone", "np_package"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("np_absent:f", "no Python module np_absent; install it or put its folder on PYTHONPATH"),
        ("np_here.absent:f", "no Python module np_here.absent"),
        ("np_here:", "must read package.module:function"),
        ("math:floor", "no Python module math"),
    ],
)
def test_what_has_no_source_is_refused(write: Write, name: str, said: str) -> None:
    write("np_here.py", "")
    with pytest.raises(ValueError, match=said):
        find_source(name)


def test_a_recipe_with_an_unknown_utility_is_refused(recipe_file: Path) -> None:
    for name, said in [("np_absent:f", "no Python module"), ("los", r"choose from \['kl', 'loss'")]:
        with pytest.raises(ValueError, match=said):
            load_recipe(recipe_file, [f"steps.0.prune.utility={name}"])


def test_the_preflight_imports_what_the_recipe_names(recipe_file: Path, write: Write) -> None:
    write("np_broken.py", "def f(logits, ids): return 1.0")
    recipe = load_recipe(recipe_file, ["steps.0.prune.utility=np_broken:f"])
    with pytest.raises(ValueError, match=r"np_broken:f does not import \(RuntimeError: imported\)"):
        check_utility(recipe)
    assert check_utility(load_recipe(recipe_file, ["steps.0.prune.utility=kl"])).message == "kl"


def test_a_changed_function_is_another_stage(recipe_file: Path, write: Write) -> None:
    write("np_metric.py", "def f(logits, ids): return 1.0")
    model = ModelRef(uri="", digest="d", architecture="", num_parameters=1, num_bytes=1)
    text = TextRef(uri="", digest="d", num_bytes=0)

    def key(utility: str) -> str:
        recipe = load_recipe(recipe_file, [f"steps.0.prune.utility={utility}"])
        assert recipe.steps[0].prune
        return prune_stage(recipe, recipe.steps[0].prune, model, text).key

    before = [key("np_metric:f"), key("loss"), key("kl")]
    assert len(set(before)) == 3
    assert key("np_metric:f") == before[0]
    write("np_metric.py", "def f(logits, ids): return 2.0  # changed")
    assert key("np_metric:f") != before[0]
    assert key("loss") == before[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 3))
def test_units_score_on_shards_of_their_own_and_repair_on_other_windows(
    num_scored: int, more: int, seed: int
) -> None:
    total = num_scored + more
    num_shards = total // num_scored
    units = [choose_windows(unit, total, num_scored, seed) for unit in range(2 * num_shards)]
    for scored, fitted in units:
        assert not set(scored) & set(fitted)
        assert len(set(scored)) == num_scored
        assert len(set(fitted)) == min(num_scored * FIT_PER_SCORED, more)
    for pack in (units[:num_shards], units[num_shards:]):
        seen = np.concatenate([scored for scored, _ in pack])
        assert len(set(seen)) == num_shards * num_scored


def test_the_default_shards_do_not_overlap() -> None:
    options = PruneOptions(sparsity=0.5)
    num_units = options.num_submodels // options.submodels_per_unit
    windows = [choose_windows(u, 128, options.windows_per_submodel, 0)[0] for u in range(num_units)]
    assert len(set(np.concatenate(windows))) == num_units * options.windows_per_submodel
