"""What others wrote into a store: read, or answered with an error; nothing is left behind."""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.lease import Holder, read_holder
from infra.storage import FileStore
from tasks.corpus.retrieval.catalogue import DataSet, read_catalogue
from tasks.digests import digest_file, digest_files, list_files
from tasks.errors import StorageError
from tasks.publish import documents
from tasks.publish.artifact import MANIFEST_NAME
from tasks.publish.channels import ChannelEntry, read_history, read_newest, rollback
from tasks.publish.destination import hidden_sibling
from tasks.publish.garbage import Keep, find_garbage
from tasks.publish.listing import list_artifacts
from tasks.publish.manifest import Manifest, parse_manifest
from tasks.publish.pulling import pull
from tasks.publish.references import show
from tasks.publish.run_history import read_runs
from tasks.publish.signing import describe_signature
from tasks.run_records import RunRecord
from tests.unit.artifact_factory import store_artifact, write_files

ENTRY = "channels/tiny/int4/nightly/99999998.json"

VALUES = st.one_of(
    st.sampled_from(
        [
            *(None, True, "", "..", "/etc/passwd", "../../x", "nul\0", "\x1b[2J", "0" * 64),
            *("0" * 63, "A" * 64, "a" * 65, " " + "a" * 63, "x" * 10_000, "<script>", "tiny/int4"),
            *(-1, 0, 2, 2**63, 10**30, 10**400, 1e308, 0.5, [], {}, {"": None}, [[]] * 50),
            *({"sha256": "0" * 64, "bytes": 10**18}, {"exports": []}, {"exports": [{"name": []}]}),
        ]
    ),
    st.text(max_size=10),
    st.integers(),
)
OUTSIDE = "../x a/../../x /x //x a//b ./x a/. a/ . .. ..\\x a\\..\\x C:x C:\\x \\\\host\\x ~/x"
STRANGE = (
    "nul\0 a\x7f \x1b[2J \u202ex \u200b \ufeffx \uff0e\uff0e/x a\uff0fb %2e%2e/x \u00e9 e\u0301"
)
CLASHING = "manifest.json MANIFEST.JSON manifest.json/x part PART part/x Part/y \u00df SS con -rf"
LONG = ["x" * 256, "\u00e9" * 200, "a/" * 300, f".{'0' * 32}.part", "", "a\nb", "a ", "\u2028"]
PATHS = st.one_of(
    st.sampled_from([*OUTSIDE.split(" "), *STRANGE.split(" "), *CLASHING.split(" "), *LONG]),
    st.text(alphabet="aA./\\~:\u00e9\0 ", max_size=8),
)


@pytest.fixture(scope="module", autouse=True)
def unsynced() -> Iterator[None]:
    """A thousand pulls need no disk that survives a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and nothing else but what tests put beside it."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def shared(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FileStore, Manifest]:
    store = FileStore(f"file://{place / 'store'}")
    files = write_files(tmp_path_factory.mktemp("files") / "a", "a")
    return store, store_artifact(store, files, channel=None)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path / 'store'}")


@pytest.fixture
def artifact(store: FileStore, tmp_path: Path) -> Manifest:
    return store_artifact(store, write_files(tmp_path / "a", "a"))


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def try_pull(store: FileStore, place: Path, raw: Any) -> Manifest | None:
    """Pull an artifact of this manifest, which lies where it says or where the reader looks.

    Fails where anything else than DEST is left.
    """
    digest = raw.get("digest") if isinstance(raw, dict) else None
    plain = isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    digest = digest if plain else "f" * 64
    key = f"artifacts/tiny/int4/{digest}/{MANIFEST_NAME}"
    earlier = store.read(key) if store.exists(key) else None
    store.write(key, json.dumps(raw).encode())
    before = tree(place)
    dest = place / "dest"
    manifest = None
    try:
        pulled = pull(store, f"tiny/int4@sha256:{digest}", dest, num_threads=1)
        assert isinstance(pulled, Manifest)
        manifest = pulled
        assert set(list_files(dest)) == {*pulled.files, MANIFEST_NAME}
        for path, entry in pulled.files.items():
            assert sha256((dest / path).read_bytes()).hexdigest() == entry.sha256
        shutil.rmtree(dest)
    except StorageError as error:
        assert 0 < len(str(error)) < 5000
    assert tree(place) == before
    if earlier is None:
        shutil.rmtree((store.root / key).parent)
    else:
        store.write(key, earlier)
    return manifest


def places_in(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs):
        yield node, key
        if isinstance(value, dict | list):
            yield from places_in(value)


def change(raw: Any, number: int, verb: str, value: Any) -> None:
    """Set, drop or add something somewhere."""
    found = list(places_in(raw))
    container, key = found[number % len(found)]
    value = copy.deepcopy(value)
    if verb == "set":
        container[key] = value
    elif verb == "drop":
        del container[key]
    elif isinstance(container, dict):
        container[value if isinstance(value, str) else "added"] = value


CHANGES = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(["set", "set", "drop", "add"]), VALUES),
    min_size=1,
    max_size=2,
)


@settings(max_examples=500, deadline=None)
@given(changes=CHANGES)
def test_any_value_anywhere(
    place: Path, shared: tuple[FileStore, Manifest], changes: list[tuple[int, str, Any]]
) -> None:
    store, manifest = shared
    raw = json.loads(manifest.to_json())
    for number, verb, value in changes:
        change(raw, number, verb, value)
    try_pull(store, place, raw)


@settings(max_examples=500, deadline=None)
@given(paths=st.lists(PATHS, min_size=1, max_size=3, unique=True), stored=st.booleans())
def test_any_path_of_a_file(
    place: Path, shared: tuple[FileStore, Manifest], paths: list[str], stored: bool
) -> None:
    """Even where all digests agree, and the store holds what the manifest says."""
    store, manifest = shared
    raw = json.loads(manifest.to_json())
    data = b"x" * 10
    entry = {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
    raw["files"] = dict.fromkeys(paths, entry)
    raw["num_bytes"] = len(data) * len(paths)
    try:
        raw["digest"] = digest_files(dict.fromkeys(paths, entry["sha256"]))
        keys = [f"artifacts/tiny/int4/{raw['digest']}/files/{path}" for path in paths]
        for key in keys if stored else []:
            store.write(key, data)
    except (ValueError, OSError):
        stored = False
    folder = store.root / "artifacts" / "tiny" / "int4" / raw["digest"]
    pulled = try_pull(store, place, raw)
    assert not folder.exists()
    if pulled:
        assert stored
        assert all(os.path.normpath(f"/dest/{path}") == f"/dest/{path}" for path in paths)
        assert len({path.casefold() for path in paths}) == len(paths)


BIG = [[]]
for _ in range(400):
    BIG = [BIG]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"facts": ' + json.dumps(BIG).encode() + b"}", "is no JSON"),
        (b'{"a": ' * 100_000, "is no JSON"),
        (b"[]", "should be an object"),
        (b'{"schema_version": 2}', "schema version above 1"),
        (b'{"schema_version": 3, "kind": "dataset"}', "schema version above 2"),
        (b'{"schema_version": ' + b"9" * 4000 + b"}", "schema version above 1"),
        (b'{"schema_version": "2"}', "Field required"),
        (b'{"digest": NaN}', "recipe_name: Field required"),
        (b'{"recipe_name": "\\ud800"}', "is no JSON"),
        (b" " * (documents.MAX_BYTES + 1), "67,108,864 bytes at most, got 67,108,865"),
    ],
)
def test_a_document_that_is_none_is_told(data: bytes, told: str) -> None:
    with pytest.raises(StorageError, match=told):
        parse_manifest(data, "here")


def republish(store: FileStore, manifest: Manifest, path: str, **entry: Any) -> str:
    """Store a manifest that says something else of one file; return a reference to it."""
    raw = json.loads(manifest.to_json())
    raw["files"][path] |= entry
    raw["num_bytes"] = sum(found["bytes"] for found in raw["files"].values())
    raw["digest"] = digest_files({p: found["sha256"] for p, found in raw["files"].items()})
    folder = f"artifacts/tiny/int4/{raw['digest']}"
    if not store.exists(f"{folder}/files/{path}"):
        shutil.copytree(store.root / manifest.prefix / "files", store.root / folder / "files")
    store.write(f"{folder}/{MANIFEST_NAME}", json.dumps(raw).encode())
    return f"tiny/int4@sha256:{raw['digest']}"


@pytest.mark.parametrize(
    ("trick", "told"),
    [
        ("a digest that is wrong", "expected 2,000 bytes with sha256 0000"),
        ("a size that is wrong", "expected 9 bytes, got 2,000"),
        ("more than the disk holds", "bytes are to come, and 5,000 are free"),
        ("a link to a file", "got no such object"),
        ("a link to a device", "got no such object"),
        ("a link to a folder", "got no such object"),
        ("a pipe", "got no such object"),
    ],
)
def test_nothing_is_left_of(
    trick: str,
    told: str,
    store: FileStore,
    artifact: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = store.root / artifact.prefix / "files" / "part-1.bin"
    reference = "tiny"
    if trick == "a digest that is wrong":
        reference = republish(store, artifact, "part-1.bin", sha256="0" * 64)
    elif trick == "a size that is wrong":
        reference = republish(store, artifact, "part-1.bin", bytes=9)
    elif trick == "more than the disk holds":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000))
    elif trick == "a pipe":
        target.unlink()
        os.mkfifo(target)
    else:
        target.unlink()
        target.symlink_to(
            {"file": tmp_path / "a/part-1.bin", "device": "/dev/zero"}.get(
                trick.split()[-1], tmp_path / "a"
            )
        )
    before = tree(tmp_path)
    with pytest.raises(StorageError, match=told):
        pull(store, reference, tmp_path / "dest")
    assert tree(tmp_path) == before


def test_links_at_the_destination_lead_nowhere(
    store: FileStore, artifact: Manifest, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    dest = tmp_path / "dest"
    hidden = hidden_sibling(dest, artifact.digest)
    hidden.symlink_to(outside)
    with pytest.raises(ValueError, match="is not the folder of an earlier pull; move it away"):
        pull(store, "tiny", dest)
    hidden.unlink()
    hidden.write_text("a file")
    with pytest.raises(ValueError, match="is not the folder of an earlier pull"):
        pull(store, "tiny", dest)
    hidden.unlink()
    dest.symlink_to(outside)
    with pytest.raises(ValueError, match="not a pulled artifact"):
        pull(store, "tiny", dest)
    assert list(outside.iterdir()) == []
    assert tree(tmp_path) >= {"outside", "dest"} and not hidden.exists()


def test_an_outage_keeps_what_had_come(
    store: FileStore, artifact: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def get_file(key: str, local: Path) -> str:
        if len(fetched) == 2:
            raise TimeoutError("the line is cut")
        fetched.append(key)
        shutil.copyfile(store.root / key, local)
        return digest_file(local)

    monkeypatch.setattr(store, "get_file", get_file)
    with pytest.raises(StorageError, match="the line is cut\n  the same command goes on"):
        pull(store, "tiny", tmp_path / "dest", num_threads=1)
    assert len(list_files(hidden_sibling(tmp_path / "dest", artifact.digest))) == 2
    monkeypatch.undo()
    pull(store, "tiny", tmp_path / "dest")


def test_a_link_in_a_listing_is_followed_by_nobody(
    store: FileStore, artifact: Manifest, tmp_path: Path
) -> None:
    """Least of all by gc, which would delete what it leads to."""
    mine = tmp_path / "mine" / "files"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("mine")
    os.utime(mine / "thesis.tex", (0, 0))
    folder = store.root / "artifacts/tiny/int4"
    (folder / ("0" * 64)).symlink_to(tmp_path / "mine")
    (folder / "loop").symlink_to(store.root)
    assert not any("thesis" in key or "loop" in key for key in store.list(""))
    assert find_garbage(store, Keep(runs=0), 4e9).folders == []
    assert [listed.digest for listed in list_artifacts(store)] == [artifact.digest]


ENTRY_GOOD = ChannelEntry(
    n=1, digest="a" * 64, previous=None, action="publish", by="x", why="y", at="2026"
)
RUN_GOOD = RunRecord(
    recipe="tiny",
    run_id="x",
    started="2026",
    seconds=1,
    status="done",
    store_uri="file:///x",
    channel="nightly",
    stages=[],
    models=[],
    exports=[],
)
HOLDER_GOOD = Holder("run", "host", "boot", "1 1", "2026", 0.0)
READERS: dict[str, tuple[str, dict[str, Any], Callable[[FileStore], object]]] = {
    "entry": (
        ENTRY,
        ENTRY_GOOD.model_dump(),
        lambda store: read_newest(store, "tiny", "int4", "nightly"),
    ),
    "run": (
        "runs/tiny/20261121T0Z-a/run.json",
        RUN_GOOD.model_dump(),
        lambda store: read_runs(store, "tiny"),
    ),
    "lease": (
        "leases/tiny/99999998.json",
        asdict(HOLDER_GOOD),
        lambda store: read_holder(store, "leases/tiny"),
    ),
    "signature": (
        "artifacts/tiny/int4/x/manifest.sig",
        {"public_key": "0" * 64, "signature": "0" * 128, "manifest": "{}"},
        lambda store: describe_signature(store, "artifacts/tiny/int4/x"),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_answers_with_an_error(name: str, tmp_path_factory: Any) -> None:
    key, good, read = READERS[name]
    store = FileStore(f"file://{tmp_path_factory.mktemp(name) / 'store'}")

    @settings(max_examples=150, deadline=None)
    @given(changes=CHANGES, cut=st.integers(0, 60))
    def check(changes: list[tuple[int, str, Any]], cut: int) -> None:
        raw = copy.deepcopy(good)
        for number, verb, value in changes:
            if raw:
                change(raw, number, verb, value)
        data = json.dumps(raw).encode()
        store.write(key, data[: len(data) - cut] if cut > 50 else data)
        try:
            read(store)
        except (StorageError, OSError) as error:
            assert 0 < len(str(error)) < 5000

    check()
    for data in (b"", b"null", b"\xff", b"[" * 50_000, b"1" * 6000):
        store.write(key, data)
        try:
            read(store)
        except (StorageError, OSError) as error:
            assert len(str(error)) < 5000


@pytest.mark.parametrize(
    ("key", "raw", "told"),
    [
        (ENTRY, ENTRY_GOOD.model_dump() | {"digest": "../../x"}, "digest: String should match"),
        (ENTRY, ENTRY_GOOD.model_dump() | {"n": 7}, "says that it is 99999992.json"),
        ("channels/tiny/int4/nightly/00.txt", {}, "00.txt: n: Field required\n  find out who"),
        (ENTRY, ENTRY_GOOD.model_dump() | {"schema_version": 2}, "use a newer nightpress"),
    ],
)
def test_a_foreign_entry_names_itself(
    store: FileStore, key: str, raw: dict[str, Any], told: str
) -> None:
    store.write(key, json.dumps(raw).encode())
    with pytest.raises(StorageError, match=told):
        show(store, "tiny/int4")


def test_a_history_that_does_not_add_up_rolls_nowhere(store: FileStore) -> None:
    store.write(ENTRY, json.dumps(ENTRY_GOOD.model_dump() | {"action": "rollback"}).encode())
    assert len(read_history(store, "tiny", "int4", "nightly")) == 1
    with pytest.raises(ValueError, match="has no earlier artifact"):
        rollback(store, "tiny", "int4", "nightly", "ann", "x")


@settings(max_examples=150, deadline=None)
@given(changes=CHANGES, lines=st.booleans())
def test_a_catalogue_is_read_or_refused(
    place: Path, changes: list[tuple[int, str, Any]], lines: bool
) -> None:
    raw: list[Any] = [{"name": "a", "description": "b", "uri": "x.jsonl", "columns": ["c"]}]
    for number, verb, value in changes:
        if raw:
            change(raw, number, verb, value)
    path = place.parent / ("catalogue.jsonl" if lines else "catalogue.yaml")
    text = "\n".join(json.dumps(row) for row in raw) if lines else json.dumps(raw)
    path.write_text(text)
    try:
        read_catalogue(path, DataSet)
    except ValueError as error:
        assert str(path) in str(error)


def test_deep_lines_and_anchors_of_a_catalogue_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    (tmp_path / "a.yaml").write_text("- &a [*a]")
    for name in ("a.jsonl", "a.yaml"):
        with pytest.raises(ValueError, match="is no catalogue"):
            read_catalogue(tmp_path / name, DataSet)


def test_what_is_to_be_pulled_is_known_from_two_readings_and_a_listing(
    store: FileStore, artifact: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files or entries there are."""
    asked: list[str] = []
    for method in ("read", "list", "sizes", "exists"):
        found = getattr(store, method)
        monkeypatch.setattr(
            store, method, lambda *a, _f=found, _m=method, **k: (asked.append(_m), _f(*a, **k))[1]
        )
    pull(store, "tiny/int4", tmp_path / "dest")
    assert sorted(asked) == ["list", "read", "read", "read", "sizes"]
