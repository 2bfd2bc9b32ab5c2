"""Nights on a Ray cluster of two hosts, on a real S3 server: cables pulled, ranks killed.

Each host has one CPU, so that both are needed for two workers. What happened is printed with
times; `pytest -s` shows it.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import yaml

from infra.storage import Store, open_store
from tests.integration.pipeline import Workplace
from tests.integration.swift_server import running_swift
from tests.integration.two_hosts import TwoHosts, running_hosts

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(2400)]

BOTH = ["node-a", "node-b"]
TIMEOUT_S = 900
SPREAD = 1e-3
"""Relative difference of final losses that rounding may make; measured below 1e-6."""


@dataclass
class Night:
    """A run of the command on the first host, on a store of its own."""

    place: Workplace
    recipe: Path
    store: Store
    began: float
    process: Popen[str] | None = None

    def start(self) -> None:
        self.process = self.place.start("run", self.recipe, "--json")
        self.began = time.monotonic()

    def end(self) -> tuple[dict[str, Any], str]:
        """Return the run's record, and what the command said meanwhile."""
        assert self.process
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, f"{out}\n{err}"
        self.say("the night has ended")
        record: dict[str, Any] = json.loads(out)
        return record, err

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {what}", flush=True)

    def wait_until(self, reached: Callable[[], Any]) -> Any:
        """Return what a look at the store gives, as soon as it is something."""
        assert self.process
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := reached()):
            if self.process.poll() is not None:
                raise AssertionError(f"ended too soon\n{self.process.communicate()}")
            assert time.monotonic() < deadline, "never got there"
            time.sleep(0.2)
        return found

    def num_units(self) -> int:
        return sum("/units/" in key for key in self.store.list("stages/prune/"))

    def training(self) -> dict[str, Any] | None:
        """Return how far training was when rank 0 last said so."""
        for key in self.store.list("stages/distill/"):
            if key.endswith("/progress.json"):
                progress: dict[str, Any] = json.loads(self.store.read(key))
                return progress
        return None

    def newest_checkpoint(self) -> int:
        """Return the steps done at training's newest checkpoint, 0 where there is none."""
        keys = self.store.list("stages/distill/")
        markers = [Path(key) for key in keys if key.endswith(".json")]
        return max((int(m.stem) for m in markers if m.parent.name == "checkpoints"), default=0)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with (
        running_hosts(tmp_path_factory.mktemp("hosts")) as hosts,
        running_swift(tmp_path_factory.mktemp("bucket"), hosts.gateway) as swift,
        pytest.MonkeyPatch.context() as patched,
    ):
        for name, value in swift.environment.items():
            patched.setenv(name, value)
        for host in (hosts.head, hosts.other):
            host.environment |= swift.environment  # each host's own; nothing comes through Ray
        make_bucket(swift.environment)
        hosts.start_ray()
        yield hosts


def make_bucket(environment: dict[str, str]) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        config_kwargs={"s3": {"addressing_style": "path"}},
    )
    fs.call_s3("create_bucket", Bucket="hosts")


@pytest.fixture(scope="module")
def make_night(
    hosts: TwoHosts, recipe_text: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Night]:
    document = yaml.safe_load(recipe_text)
    prune, distill = document["steps"]
    prune["prune"]["num_submodels"] = 160
    distill["distill"] |= {"num_tokens": 80 * 8 * 32, "checkpoint_steps": 10}
    document |= {"comparisons": [], "exports": document["exports"][1:]}
    document["cluster"] = {"ray": "auto", "workers": 2, "min_workers": 1, "rank_timeout_s": 120}
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))

    def make(name: str) -> Night:
        uri = f"s3://hosts/{name}"
        extra = hosts.head.environment | {"NIGHTPRESS_STORE": uri}
        place = Workplace(hosts.local, extra, enter=hosts.head.enter)
        return Night(place, recipe, open_store(uri), time.monotonic())

    return make


@pytest.fixture(scope="module")
def undisturbed(make_night: Callable[[str], Night]) -> dict[str, Any]:
    night = make_night("undisturbed")
    night.start()
    return night.end()[0]


def stage(record: dict[str, Any], title: str) -> dict[str, Any]:
    (found,) = (row for row in record["stages"] if row["title"] == title)
    return dict(found)


def model(record: dict[str, Any], title: str) -> dict[str, Any]:
    (found,) = (row["model"] for row in record["models"] if row["title"] == title)
    return dict(found)


def test_sweep_and_training_run_over_both_hosts(undisturbed: dict[str, Any]) -> None:
    assert undisturbed["status"] == "done"
    assert stage(undisturbed, "1 prune")["nodes"] == BOTH
    assert stage(undisturbed, "2 distill")["nodes"] == BOTH
    assert "fewest_workers" not in model(undisturbed, "2 distill")["facts"]


def test_a_host_is_lost_and_comes_back_and_then_a_rank_is_killed(
    undisturbed: dict[str, Any], make_night: Callable[[str], Night], hosts: TwoHosts
) -> None:
    night = make_night("regained")
    night.start()
    before = night.wait_until(lambda: night.num_units() if night.num_units() >= 10 else 0)
    hosts.other.cut_off()
    night.say(f"in the sweep, after {before} units: node-b is cut off")
    after = night.wait_until(lambda: night.num_units() if night.num_units() >= 20 else 0)
    night.say(f"{after} units")
    hosts.other.come_back(*hosts.join)
    night.say("node-b has joined again")
    step, progress = night.wait_until(night.newest_checkpoint), night.wait_until(night.training)
    (victim,) = (rank for rank in progress["ranks"] if rank["host"] == "node-b")
    hosts.other.kill(victim["pid"])
    night.say(f"in training, after the checkpoint of step {step}: kill -9 of the rank on node-b")
    again = night.wait_until(lambda: changed(night.training(), progress))
    night.say(f"training goes on at step {again['step']} with {len(again['ranks'])} ranks")
    record, said = night.end()
    assert "training was started again" in said
    assert stage(record, "2 distill")["nodes"] == BOTH
    for title in ("1 prune", "2 distill"):
        assert model(record, title)["digest"] == model(undisturbed, title)["digest"]


def test_training_goes_on_with_the_host_that_is_left(
    undisturbed: dict[str, Any], make_night: Callable[[str], Night], hosts: TwoHosts
) -> None:
    night = make_night("lost")
    night.start()
    step, progress = night.wait_until(night.newest_checkpoint), night.wait_until(night.training)
    hosts.other.cut_off()
    night.say(f"in training, after the checkpoint of step {step}: node-b is cut off")
    again = night.wait_until(lambda: changed(night.training(), progress))
    night.say(f"training goes on at step {again['step']} with {len(again['ranks'])} ranks")
    record, said = night.end()
    assert "with 1 workers after 2, on node-a" in said
    lost, whole = model(record, "2 distill"), model(undisturbed, "2 distill")
    print(f"final loss {lost['facts']['final_loss']}, undisturbed {whole['facts']['final_loss']}")
    assert lost["facts"]["fewest_workers"] == 1
    assert 0 < lost["facts"]["steps_with_fewer_workers"] < lost["facts"]["num_steps"]
    assert lost["facts"]["final_loss"] == pytest.approx(whole["facts"]["final_loss"], rel=SPREAD)
    assert model(record, "1 prune")["digest"] == model(undisturbed, "1 prune")["digest"]
    assert record["status"] == "done"


def changed(now: dict[str, Any] | None, before: dict[str, Any]) -> dict[str, Any] | None:
    """Return training's progress once other ranks have it in their hands."""
    return now if now and now["ranks"] != before["ranks"] else None
