"""Nights to be disturbed: a reference that nobody disturbs, a watched scene, an S3 server."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from infra.storage import S3Store, Store, open_store, put_folder
from tests.integration.faults.channel_reader import ChannelReader
from tests.integration.faults.ledger import Ledger
from tests.integration.faults.prefect_process import Prefect
from tests.integration.faults.scene import Scene, Undisturbed
from tests.integration.pipeline import Workplace, artifact_digests
from tests.integration.swift_server import Swift, running_swift

BUCKET = "faults"


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """Rows of the table in docs/faults.md; kept where NIGHTPRESS_FAULTS names a JSON file."""
    path = os.environ.get("NIGHTPRESS_FAULTS")
    return Ledger(Path(path) if path else None)


@pytest.fixture(scope="session")
def own_prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """A Prefect server for these tests alone, which may kill it."""
    server = Prefect(tmp_path_factory.mktemp("fault-prefect"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def own_swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """An S3 server for these tests alone, which may kill it."""
    with running_swift(tmp_path_factory.mktemp("fault-swift")) as server:
        yield server


@pytest.fixture(scope="session")
def quick_recipe(recipe_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher rounded to int8: corpus, two evaluations, quantization, gate, publishing."""
    raw = yaml.safe_load(recipe_text)
    raw |= {"steps": [], "comparisons": [], "exports": raw["exports"][1:]}
    raw["cluster"] = {"workers": 1}
    raw["corpus"]["sources"] = raw["corpus"]["sources"][1:]
    path = tmp_path_factory.mktemp("quick") / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="session")
def yesterday(
    quick_recipe: Path,
    make_llama: Callable[..., Path],
    own_prefect: Prefect,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """A store whose channel serves a model of another teacher, and the model's digest."""
    place = Workplace(tmp_path_factory.mktemp("yesterday"), {"PREFECT_API_URL": own_prefect.url})
    other = f"teacher.model={make_llama(seed=1)}"
    record = place.run_json("run", quick_recipe, "--set", other)
    kept = place.folder / "kept"
    for folder in ("artifacts", "channels"):
        shutil.copytree(place.store / folder, kept / folder)
    return kept, artifact_digests(record)["int8"]


def run_undisturbed(
    recipe: Path, yesterday: tuple[Path, str], folder: Path, own_prefect: Prefect
) -> Undisturbed:
    store, older = yesterday
    place = Workplace(folder, {"PREFECT_API_URL": own_prefect.url})
    shutil.copytree(store, place.store)
    began = time.monotonic()
    digests = artifact_digests(place.run_json("run", recipe))
    seconds = time.monotonic() - began
    ages: dict[str, dict[str, int]] = {export: {digests[export]: 1} for export in digests}
    ages["int8"][older] = 0
    return Undisturbed(recipe, store, ages, digests, seconds)


@pytest.fixture(scope="session")
def quick(
    quick_recipe: Path,
    yesterday: tuple[Path, str],
    own_prefect: Prefect,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    folder = tmp_path_factory.mktemp("quick-undisturbed")
    return run_undisturbed(quick_recipe, yesterday, folder, own_prefect)


@pytest.fixture
def make_scene(tmp_path: Path, own_prefect: Prefect) -> Iterator[Callable[..., Scene]]:
    """Make a scene on a store in a folder, or on the one named; its reader and its processes are
    looked at when the test has ended."""
    scenes: list[Scene] = []

    def make(undisturbed: Undisturbed, store_uri: str | None = None, **extra: str) -> Scene:
        place = Workplace(tmp_path / "place", {"PREFECT_API_URL": own_prefect.url} | extra)
        if store_uri:
            place.extra["NIGHTPRESS_STORE"] = store_uri
        store = open_store(store_uri or f"file://{place.store}", tmp_path / "cache")
        fill(store, undisturbed.yesterday)
        reader = ChannelReader(store, "tiny", undisturbed.ages, tmp_path / "pulled")
        scene = Scene(place, undisturbed, reader)
        scenes.append(scene)
        reader.start()
        return scene

    yield make
    for scene in scenes:
        scene.reader.stop()
        for process in scene.processes():
            process.kill()


def fill(store: Store, folder: Path) -> None:
    for part in folder.iterdir():
        put_folder(store, part, part.name)


@pytest.fixture
def bucket(own_swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of a store on the S3 server, which is up again at the end of the test."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in own_swift.environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", tmp_path / "cache")
    with suppress(FileExistsError):
        store.fs.call_s3("create_bucket", Bucket=BUCKET)
    yield store.uri
    if "proxy" not in own_swift.processes:
        own_swift.start("proxy")
    own_swift.wait_until_up()
