"""`plan --cluster`: what a measured stage takes elsewhere, and where there is nothing to go by."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.devices import CPU, Cluster, parse_cluster, recognize
from flows.forecast import Measured, forecast
from flows.measured_nights import last_measured, own_cluster
from flows.planning import PlannedStage, check_room, make_plan
from infra.storage import open_store
from tasks.inputs import find_inputs
from tasks.recipe_file import load_recipe
from tasks.run_records import Effort, Fanout, RunRecord

GROUPS = (("sweep", 4, 40.0), ("cut", 1, 50.0))
XEON, H100 = "Intel(R) Xeon(R) Processor", "NVIDIA H100 80GB HBM3"


def fanout(num_units: int, num_workers: int, seconds: float, in_step: bool = False) -> Fanout:
    return Fanout(
        group="units",
        num_units=num_units,
        num_workers=num_workers,
        worker_seconds=seconds,
        in_step=in_step,
    )


def measured(
    seconds: float,
    *fanouts: Fanout,
    device: str = XEON,
    num_workers: int = 1,
    runs_model: bool = True,
) -> Measured:
    effort = Effort(num_workers=num_workers, fanouts=list(fanouts), devices=[device])
    return Measured(seconds, effort, {"": 1e12} if runs_model else {})


def on_cpus(num_workers: int, found: Measured, more: float = 1.0) -> float | None:
    operations = {group: count * more for group, count in found.operations.items()}
    return forecast(operations, False, found, Cluster(num_workers, CPU), num_workers)


def test_the_drivers_part_stays_and_units_are_never_divided() -> None:
    """10 s of the driver, 5 units of 20 s: on two workers three rounds of them."""
    found = measured(110, fanout(5, 1, 100))
    assert on_cpus(1, found) == pytest.approx(110)
    assert on_cpus(2, found) == pytest.approx(10 + 3 * 20)
    assert on_cpus(8, found) == on_cpus(5, found) == pytest.approx(10 + 20)


def test_twice_the_work_is_twice_the_units_or_a_longer_one() -> None:
    assert on_cpus(8, measured(110, fanout(5, 1, 100)), more=2) == pytest.approx(10 + 2 * 20)
    assert on_cpus(8, measured(30, fanout(1, 1, 20)), more=2) == pytest.approx(10 + 40)


def test_groups_of_units_grow_apart() -> None:
    """Twice the sub-models of a sweep, and the same cut."""
    sweep, cut = (fanout(n, 1, s).model_copy(update={"group": g}) for g, n, s in GROUPS)
    found = measured(100, sweep, cut)._replace(operations={"sweep": 1e12, "": 3e12})
    more = {"sweep": 2e12, "": 3e12}
    assert forecast(more, False, found, Cluster(1, CPU), 1) == pytest.approx(100 + 40)


def test_a_groups_ranks_share_the_work() -> None:
    found = measured(70, fanout(2, 2, 120, in_step=True), num_workers=2)
    assert on_cpus(8, found) == pytest.approx(10 + 15)


def test_a_stages_own_limit_stays() -> None:
    """Eight blocks one after the other on four workers were so for a reason."""
    assert on_cpus(8, measured(90, fanout(8, 1, 80), num_workers=4)) == pytest.approx(90)


def test_a_faster_device_shortens_what_it_computes_and_nothing_else() -> None:
    found = measured(110, fanout(4, 4, 400), device=H100, num_workers=4)
    on_h200 = forecast({"": 1e12}, True, found, parse_cluster("4xH200"), 4)
    on_b200 = forecast({"": 1e12}, True, found, parse_cluster("4xB200"), 4)
    assert on_h200 == pytest.approx(110)
    assert on_b200 == pytest.approx(10 + 100 * 989 / 2250)
    no_model = measured(110, fanout(4, 4, 400), runs_model=False)
    assert forecast({}, False, no_model, parse_cluster("4xH100"), 4) == pytest.approx(110)


def test_arithmetic_where_nothing_was_measured() -> None:
    cluster = parse_cluster("8xH100")
    assert forecast({"": 989e12 * 0.3 * 8}, True, None, cluster, 8) == pytest.approx(1.0)
    assert forecast({}, True, None, cluster, 8) is None


@settings(max_examples=50)
@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.floats(0.1, 1e4),
    st.floats(0, 1e3),
    st.integers(1, 64),
)
def test_more_workers_never_take_longer_and_the_same_ones_take_as_long(
    units: int, workers: int, at_work: float, driver: float, there: int
) -> None:
    part = fanout(units, min(units, workers), at_work)
    rounds = -(-units // part.num_workers)
    found = measured(driver + at_work * rounds / units, part, num_workers=workers)
    same, fewer, most = (on_cpus(n, found) for n in (workers, there, there + 1))
    assert same == pytest.approx(found.seconds)
    assert most is not None and fewer is not None and driver <= most <= fewer * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        (H100, "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        (XEON, "cpu"),
        ("AMD EPYC 9654 96-Core Processor", "cpu"),
    ],
)
def test_devices_are_known_by_the_names_that_they_give(name: str, device: str) -> None:
    found = recognize(name)
    assert found is not None and found.name == device


def test_a_gpu_that_is_not_in_the_table_is_not_taken_for_a_processor() -> None:
    assert recognize("NVIDIA GeForce GTX 1080") is None


@pytest.mark.parametrize("text", ["8", "0xH100", "H100", "8xH100x", "8 x H100", "8xGTX1080"])
def test_a_cluster_that_is_none_says_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected <number>x<device>.*H100"):
        parse_cluster(text)


def run_record(title: str, stage: str, found: Measured) -> RunRecord:
    return RunRecord.model_validate(
        {
            "recipe": "tiny",
            "run_id": "20261120T021000Z-abcdef",
            "started": "2026-11-20T02:10:00+00:00",
            "seconds": 1.0,
            "status": "done",
            "store_uri": "file:///store",
            "channel": "nightly",
            "stages": [
                {
                    "title": title,
                    "stage": stage,
                    "key": "f" * 64,
                    "outcome": "computed",
                    "seconds": found.seconds,
                    "nodes": ["node"],
                    "operations_by_group": found.operations,
                    "effort": found.effort,
                }
            ],
            "models": [],
            "exports": [],
        }
    )


def test_a_plan_goes_by_the_newest_night_that_can_tell(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    store = open_store(f"file://{tmp_path}/store")
    resumed = fanout(2, 1, 5).model_copy(update={"num_stored": 3})
    history = [
        run_record("1 prune", "prune", measured(9, resumed)),
        run_record("1 prune", "prune", measured(110, fanout(4, 1, 100), runs_model=False)),
    ]
    plan = make_plan(
        recipe,
        find_inputs(recipe, store),
        store,
        history=history,
        elsewhere=parse_cluster("4xcpu"),
        worker_hour=3.0,
    )
    (prune,) = [stage for stage in plan.stages if stage.title == "1 prune"]
    assert prune.basis == "measured" and prune.seconds == pytest.approx(10 + 25)
    assert {stage.basis for stage in plan.stages if stage is not prune} == {"arithmetic", "nothing"}
    assert plan.cluster == "4xcpu" and plan.currency == "EUR"
    assert plan.price == pytest.approx(plan.seconds_to_compute / 3600 * 4 * 3, abs=1e-4)


def test_a_stage_that_a_device_cannot_hold_is_noted() -> None:
    stage = PlannedStage(
        title="2 distill",
        outcome="to compute",
        seconds=1.0,
        basis="measured",
        peak_bytes=90 * 10**9,
        workers=8,
        note="half",
    )
    h100, h200 = (parse_cluster(f"1x{name}").device for name in ("H100", "H200"))
    assert check_room(stage, h100).note == "half; more than the 80 GB of a H100"
    assert check_room(stage, h200) == check_room(stage, CPU) == stage


def test_what_gpus_a_recipe_has_is_what_it_was_seen_to_have(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["cluster.gpus_per_worker=1"])
    assert own_cluster(recipe, []).device.name == "A100"
    night = run_record("1 prune", "prune", measured(1, device=H100))
    assert own_cluster(recipe, [night]).device.name == "H100"
    assert own_cluster(load_recipe(recipe_file), [night]).device is CPU


def test_a_night_on_an_unknown_gpu_tells_nothing() -> None:
    night = run_record("1 prune", "prune", measured(1, device="NVIDIA GeForce GTX 1080"))
    assert last_measured([night], "1 prune", "prune") is None
