"""A night at its deadline: what runs ends, nothing begins, and nothing waits for ever."""

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from prefect.exceptions import TerminationSignal

from flows.stopping import (
    Deadline,
    DeadlineReached,
    NightSkipped,
    StoppableExecutor,
    check_turn,
    give_back,
    is_cancellation,
    take_turn,
)
from infra.local_executor import LocalExecutor
from infra.storage import FileStore
from tasks.errors import ClusterError
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe


def within(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds, "07:00 UTC")


def never() -> Deadline:
    return Deadline(None, "None UTC")


def stop_at(last: int) -> tuple[Callable[[None, int], int], StoppableExecutor]:
    """Return work in whose unit `last` the deadline passes, and who runs it."""
    passed = threading.Event()

    def double(state: None, unit: int) -> int:
        if unit == last:
            passed.set()
        return 2 * unit

    def check() -> None:
        if passed.is_set():
            within(0).check()

    return double, StoppableExecutor(LocalExecutor(), never(), check)


def test_units_that_run_end_and_none_begins() -> None:
    double, executor = stop_at(2)
    done = []
    with pytest.raises(DeadlineReached, match="07:00 UTC"):
        for result in executor.map(double, range(100), lambda: None):
            done.append(result)  # noqa: PERF402
    assert done == [0, 2, 4]
    with pytest.raises(DeadlineReached):
        next(executor.map(double, [1], lambda: None))


def test_work_that_was_all_begun_in_time_is_not_stopped() -> None:
    double, executor = stop_at(2)
    assert list(executor.map(double, range(3), lambda: None)) == [0, 2, 4]


def test_whatever_the_main_thread_waits_for_is_left_after_the_grace() -> None:
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(DeadlineReached), within(0.1).enforced(grace_s=0.2):
        threading.Event().wait(30)
    assert 0.3 <= time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGALRM) is before
    time.sleep(0.3)  # an alarm that were left would end the test


def test_a_group_is_stopped_at_once_and_its_stage_keeps_its_grace() -> None:
    deadline = within(0.2)
    began = time.monotonic()
    with pytest.raises(DeadlineReached), deadline.enforced(grace_s=0.6):
        with pytest.raises(DeadlineReached), deadline.enforced(grace_s=0):
            threading.Event().wait(30)
        assert time.monotonic() - began < 0.5
        threading.Event().wait(30)
    assert 0.7 < time.monotonic() - began < 5


def test_outside_the_main_thread_nothing_is_interrupted() -> None:
    outcomes = []

    def work() -> None:
        with within(0.05).enforced(grace_s=0):
            time.sleep(0.2)
            outcomes.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcomes == ["done"]


def test_a_signal_is_seen_in_what_a_library_has_made_of_it() -> None:
    try:
        try:
            raise TerminationSignal(signal.SIGTERM)
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error
    except SystemError as wrapped:
        assert is_cancellation(wrapped)
    assert is_cancellation(KeyboardInterrupt())
    assert not is_cancellation(RuntimeError()) and not is_cancellation(None)


def test_a_circle_of_causes_ends() -> None:
    first, second = RuntimeError("refused"), ValueError("asked again")
    first.__cause__, second.__cause__ = second, first
    assert not is_cancellation(first)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path}/store")


@pytest.fixture
def make_recipe(recipe_file: Path) -> Callable[[str], Recipe]:
    return lambda overlap: load_recipe(recipe_file, [f"schedule.overlap={overlap}"])


def test_a_second_night_is_skipped(store: FileStore, make_recipe: Callable[[str], Recipe]) -> None:
    lease = take_turn(make_recipe("skip"), store, "first", never())
    with pytest.raises(NightSkipped, match="another night is running: first"):
        take_turn(make_recipe("skip"), store, "second", never())
    give_back(lease)


def test_a_second_night_waits_for_the_end_of_the_first_or_its_own_deadline(
    store: FileStore, make_recipe: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.stopping.WAIT_S", 0.05)
    first = take_turn(make_recipe("skip"), store, "first", never())
    with pytest.raises(DeadlineReached):
        take_turn(make_recipe("wait"), store, "in vain", within(0.2))
    threading.Timer(0.3, partial(give_back, first)).start()
    second = take_turn(make_recipe("wait"), store, "second", within(30))
    check_turn(second, within(30))
    second.lost = True
    with pytest.raises(ClusterError, match="another one has taken its place"):
        check_turn(second, within(30))
    second.lost = False
    give_back(second)
