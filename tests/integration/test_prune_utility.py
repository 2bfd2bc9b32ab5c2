"""The prune stage with the user's own utility: what it may return, and who may die or join."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from json import dumps
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from infra.ray_cluster import RayExecutor
from infra.storage import FileStore
from tests.integration.prune_run import NUM_UNITS, PREFIX, Pruned, run_stage

SOURCE = """
import os, signal, time
from math import inf, nan
from pathlib import Path
from torch.nn.functional import cross_entropy, kl_div

CALLS = Path(os.environ["NIGHTPRESS_TEST_CALLS"])

def count():
    with CALLS.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return len(CALLS.read_text().splitlines())

def loss(logits, ids):
    return -cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

def own_kl(logits, ids, dense, at=1):
    q, p = (x[:, :-1].flatten(0, 1).log_softmax(-1) for x in (logits, dense))
    return -kl_div(q, p, reduction="batchmean", log_target=True)

def third_is_nan(logits, ids):
    return nan if count() == 3 else loss(logits, ids)

def some_are_infinite(logits, ids):
    return inf if count() % 6 == 0 else loss(logits, ids)

def slow(logits, ids):
    time.sleep(0.5)
    return loss(logits, ids) if count() else nan

def dies_once(logits, ids):
    if count() == 7:
        CALLS.with_suffix(".died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(logits, ids)

"""
SCORED = 8 + 4
"""Sub-models of a sweep, the criterion's own choice once a unit."""
CALLS_OF_A_STAGE = SCORED + 2
CALLS_OF_A_UNIT = 3


class Calls(NamedTuple):
    path: Path

    @property
    def pids(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Make `own_utility` importable here and in child processes; return who has called it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "own_utility.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("NIGHTPRESS_TEST_CALLS", str(tmp_path / "calls"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Calls(tmp_path / "calls")
    torch.set_num_threads(threads)
    sys.modules.pop("own_utility", None)


@pytest.fixture
def run(tiny_llama: Path, text_file: Path, tmp_path: Path) -> Callable[..., Pruned]:
    numbers = iter(range(100))

    def start(
        utility: str, store: str = "", executor: RayExecutor | None = None, repair: bool = True
    ) -> Pruned:
        name = f"run{next(numbers)}"
        place = FileStore(f"file://{tmp_path / (store or name)}")
        return run_stage(
            tiny_llama,
            text_file,
            place,
            tmp_path / f"scratch-{name}",
            executor,
            refine=0,
            utility=utility,
            repair=repair,
        )

    return start


@pytest.mark.parametrize("repair", [True, False])
@pytest.mark.parametrize(("own", "plugin"), [("loss", "loss"), ("own_kl", "kl")])
def test_a_function_of_the_users_own_does_what_a_plugin_does(
    run: Callable[..., Pruned], calls: Calls, own: str, plugin: str, repair: bool
) -> None:
    mine, theirs = run(f"own_utility:{own}", repair=repair), run(plugin, repair=repair)
    assert mine.evidence["measured"] == pytest.approx(theirs.evidence["measured"], abs=1e-5)
    assert mine.record.digest == theirs.record.digest
    assert mine.record.facts["utility"] == f"own_utility:{own}"
    for name, cut in mine.evidence["candidates"].items():
        expected = theirs.evidence["candidates"][name]["utility"]
        assert cut["utility"] == pytest.approx(expected, abs=1e-5)


def test_kl_asks_another_question_than_the_loss(run: Callable[..., Pruned]) -> None:
    by_loss, by_kl = run("loss").evidence, run("kl").evidence
    assert by_kl["measured"] != pytest.approx(by_loss["measured"], abs=1e-3)
    assert all(cut["utility"] < 0 for cut in by_kl["candidates"].values())


def test_a_sub_model_without_a_finite_utility_is_left_out(
    run: Callable[..., Pruned], calls: Calls
) -> None:
    pruned = run("own_utility:third_is_nan")
    evidence = pruned.evidence
    assert (evidence["num_left_out"], evidence["num_scored"]) == (1, SCORED)
    assert pruned.record.facts["left_out"] == f"1 of {SCORED} sub-models"
    assert len(evidence["predicted"]) == 7
    learned = [v for layers in evidence["importance"].values() for layer in layers for v in layer]
    assert all(abs(value) < 1e6 for value in learned)


def test_too_many_of_them_are_an_error(run: Callable[..., Pruned], calls: Calls) -> None:
    with pytest.raises(ValueError, match=r"infinite for 2 of 12 sub-models.*10%.*finite number"):
        run("own_utility:some_are_infinite")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_utility:no_such", "does not import .*no attribute 'no_such'"),
        ("own_utility:count", r"must take \(logits, ids\) or .*got \(\)"),
        ("no_such_module:f", "does not import .*No module named"),
    ],
)
def test_a_utility_that_cannot_be_called_is_refused_before_any_work(
    run: Callable[..., Pruned], calls: Calls, name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        run(name, store="refused")
    assert not FileStore(f"file://{tmp_path / 'refused'}").list(PREFIX)


@pytest.mark.integration
def test_a_killed_worker_costs_one_unit(
    run: Callable[..., Pruned], calls: Calls, tmp_path: Path
) -> None:
    """kill -9 amid a unit of the sweep; another worker takes it over."""
    undisturbed = run("loss")
    executor = RayExecutor("local", 2, 0, 1, tmp_path)
    try:
        pruned = run("own_utility:dies_once", executor=executor)
    finally:
        executor.close()
    assert (tmp_path / "calls.died").exists()
    assert len(set(calls.pids)) > 2
    assert CALLS_OF_A_STAGE < len(calls.pids) <= CALLS_OF_A_STAGE + CALLS_OF_A_UNIT
    assert pruned.record.digest == undisturbed.record.digest
    assert pruned.evidence["kept_units"] == undisturbed.evidence["kept_units"]


@pytest.mark.integration
def test_a_killed_driver_costs_one_unit(
    run: Callable[..., Pruned], calls: Calls, tiny_llama: Path, text_file: Path, tmp_path: Path
) -> None:
    """kill -9 of the one process that does everything, amid a unit; two workers go on."""
    undisturbed = run("loss")
    options = {"utility": "own_utility:dies_once", "refine": 0}
    arguments = [tiny_llama, text_file, f"file://{tmp_path / 'killed'}", tmp_path / "scratch"]
    command = [sys.executable, "-m", "tests.integration.prune_run", *map(str, arguments)]
    died = subprocess.run([*command, dumps(options)], timeout=120)
    assert died.returncode == -signal.SIGKILL
    store = FileStore(f"file://{tmp_path / 'killed'}")
    assert 1 < len(store.list(f"{PREFIX}/units/")) < NUM_UNITS
    executor = RayExecutor("local", 2, 0, 1, tmp_path)
    try:
        pruned = run("own_utility:dies_once", store="killed", executor=executor)
    finally:
        executor.close()
    assert CALLS_OF_A_STAGE < len(calls.pids) <= CALLS_OF_A_STAGE + CALLS_OF_A_UNIT
    assert pruned.record.digest == undisturbed.record.digest
    assert pruned.evidence["kept_units"] == undisturbed.evidence["kept_units"]
