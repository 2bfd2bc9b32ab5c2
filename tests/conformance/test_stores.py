"""All stores behave alike: here a folder and a simulated S3, the same tests again on real Swift."""

import hashlib
import pickle
import time
import uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra import s3_store, s3_transfer
from infra.storage import Store, localize, open_store, put_folder
from infra.store_check import check_store

KEYS = [
    "plain",
    "with space",
    "ümläut/日本/🌙",
    "a+b&c=d;e,f%20g#h?i",
    "dots..in.it/.hidden",
    "q'\"*",
    "x?versionId=1",
]


def test_write_replaces_and_read_returns(store: Store) -> None:
    for data in (b"first", b"", bytes(range(256)) * 1000):
        store.write("folder/key", data)
        assert store.read("folder/key") == data
    assert store.sizes("folder") == {"folder/key": 256_000}


def test_a_missing_key_is_file_not_found_everywhere(store: Store, tmp_path: Path) -> None:
    store.write("folder/key", b"x")
    for key in ("absent", "folder", "folder/key/below", "no/such/folder"):
        assert not store.exists(key)
        with pytest.raises(FileNotFoundError):
            store.read(key)
        with pytest.raises(FileNotFoundError):
            store.read_many(["folder/key", key])
        with pytest.raises(FileNotFoundError):
            store.get_file(key, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        store.delete(key)
    for prefix in ("absent", "folder/key/below"):
        with pytest.raises(FileNotFoundError):
            store.local_folder(prefix)
    assert store.list("absent") == store.list("absent/") == store.list("folder/key/below") == []
    assert store.sizes("absent") == {}
    assert store.exists("folder/key")


def test_create_succeeds_once(store: Store) -> None:
    assert store.create("channel/00", b"first")
    assert not store.create("channel/00", b"second")
    assert not store.create("channel/00", b"first")  # equal content is no excuse
    assert store.read("channel/00") == b"first"
    store.delete("channel/00")
    assert store.create("channel/00", b"third")


def test_one_of_simultaneous_creates_wins_and_its_bytes_stay(store: Store) -> None:
    for turn in range(6):
        rivals = [f"writer {i}".encode() for i in range(8)]
        key = f"channel/{turn:02d}"
        with ThreadPoolExecutor(len(rivals)) as pool:
            won = list(pool.map(lambda data, key=key: store.create(key, data), rivals))
        assert sum(won) == 1, f"turn {turn}: {won}"
        assert store.read(key) == rivals[won.index(True)]


@pytest.mark.parametrize("key", KEYS)
def test_any_key_comes_back_as_it_was(store: Store, key: str, tmp_path: Path) -> None:
    assert store.create(f"keys/{key}", key.encode())
    assert store.read(f"keys/{key}") == key.encode()
    assert store.list("keys/") == [f"keys/{key}"]
    assert store.list(f"keys/{key}") == [f"keys/{key}"]
    assert (store.local_folder("keys") / key).read_bytes() == key.encode()
    digest = store.get_file(f"keys/{key}", tmp_path / "copy")
    assert digest == hashlib.sha256(key.encode()).hexdigest()
    store.put_file(tmp_path / "copy", f"copies/{key}")
    assert store.sizes("copies") == {f"copies/{key}": len(key.encode())}
    store.delete(f"keys/{key}")
    assert not store.exists(f"keys/{key}")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\0b"])
def test_a_key_that_is_no_relative_path_is_refused(store: Store, key: str, tmp_path: Path) -> None:
    for refuse in (
        lambda: store.read(key),
        lambda: store.write(key, b""),
        lambda: store.create(key, b""),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.put_file(tmp_path, key),
        lambda: store.get_file(key, tmp_path / "x"),
        lambda: store.local_folder(key),
    ):
        with pytest.raises(ValueError, match="a key is a relative path"):
            refuse()


def test_list_is_sorted_by_bytes_and_fresh(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "PAGE_KEYS", 3)  # more pages than one
    keys = ["a-b", "a/b", "a/c/d", "a0", "ab", "b", "ü", "日"]
    for key in reversed(keys):
        store.write(key, b"x")
    assert store.list("") == keys
    assert store.list("a") == ["a-b", "a/b", "a/c/d", "a0", "ab"]
    assert store.list("a/") == ["a/b", "a/c/d"]
    assert store.list("a/c") == ["a/c/d"]
    for limit in range(1, 9):
        assert store.list("", limit=limit) == keys[:limit]
    assert store.sizes("a") == {"a/b": 1, "a/c/d": 1}
    assert set(store.sizes("")) == set(keys)
    store.write("A", b"")
    assert store.list("", limit=1) == ["A"]
    store.delete("A")
    assert store.list("", limit=1) == ["a-b"]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.dictionaries(
        st.lists(st.text("ab .-_é", min_size=1, max_size=3), min_size=1, max_size=3)
        .map(lambda parts: "/".join(parts) + ".end")  # so that no key is a folder of another
        .filter(lambda key: not {".", ".."} & set(key.split("/"))),
        st.binary(max_size=20),
        max_size=5,
    )
)
def test_a_store_is_a_dictionary(store: Store, objects: dict[str, bytes]) -> None:
    folder = uuid.uuid4().hex
    for key, data in objects.items():
        store.write(f"{folder}/{key}", data)
    keys = sorted((f"{folder}/{key}" for key in objects), key=str.encode)
    assert store.list(f"{folder}/") == keys
    assert store.read_many(keys) == [objects[key.removeprefix(f"{folder}/")] for key in keys]


def test_read_many_keeps_the_order(store: Store) -> None:
    keys = [f"units/{i:06d}" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.create(key, key.encode()), keys))
    assert store.read_many(keys[::-1]) == [key.encode() for key in keys[::-1]]
    assert store.read_many([]) == []


def test_a_large_file_goes_and_comes_in_parts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 * 2**20)
    data = b"".join(hashlib.sha256(bytes([i, j])).digest() for i in range(256) for j in range(256))
    data = data * 6  # 12 MiB: three parts
    (tmp_path / "large").write_bytes(data)
    store.put_file(tmp_path / "large", "models/large file")
    assert store.sizes("models") == {"models/large file": len(data)}
    digest = store.get_file("models/large file", tmp_path / "new folder" / "copy")
    assert digest == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "new folder" / "copy").read_bytes() == data
    assert store.read("models/large file") == data
    assert store.clear_uploads(older_than_s=-60) == 0
    store.put_file(tmp_path / "large", "models/large file")
    store.delete("models/large file")
    assert store.list("models/") == []


def test_put_file_needs_its_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.put_file(tmp_path / "absent", "key")
    assert store.list("") == []


def test_a_folder_goes_up_and_comes_back(store: Store, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "weights/part 1": b"w" * 5000, "empty": b""}
    for name, data in files.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    put_folder(store, tmp_path / "model", "artifacts/model")
    local = localize(store, "store://artifacts/model")
    assert {p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file()} == set(files)
    assert all((local / name).read_bytes() == data for name, data in files.items())
    one = localize(store, "store://artifacts/model/weights/part 1")
    assert one.read_bytes() == files["weights/part 1"]
    assert one.name == "part 1"
    if store.uri.startswith("s3://"):
        outside = localize(store, f"{store.uri}/artifacts/model")
        assert (outside / "config.json").read_bytes() == b"{}"


def test_a_local_folder_is_never_an_older_one(store: Store) -> None:
    store.write("model/config.json", b"1")
    assert (store.local_folder("model") / "config.json").read_bytes() == b"1"
    assert store.local_folder("model") == store.local_folder("model")
    store.write("model/config.json", b"2")
    assert (store.local_folder("model") / "config.json").read_bytes() == b"2"
    store.write("model/more", b"3")
    assert (store.local_folder("model") / "more").read_bytes() == b"3"


def test_workers_get_copies_of_the_store(store: Store) -> None:
    store.write("model/config.json", b"{}" * 1000)
    with ThreadPoolExecutor(4) as pool:
        folders = {str(f) for f in pool.map(store.local_folder, ["model"] * 8)}
    copied = pickle.loads(pickle.dumps(store))
    assert copied.uri == store.uri
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        folders |= set(pool.map(use_in_worker, [store] * 4, range(4)))
    assert len(folders) == 1
    assert store.read_many([f"units/{i}" for i in range(4)]) == [b"0", b"1", b"2", b"3"]


def use_in_worker(store: Store, unit: int) -> str:
    assert store.create(f"units/{unit}", str(unit).encode())
    folder = store.local_folder("model")
    assert (folder / "config.json").stat().st_size == 2000
    return str(folder)


def test_the_preflight_passes_and_leaves_nothing(store: Store) -> None:
    began = time.monotonic()
    findings = check_store(store.uri, needed_bytes=1)
    assert {finding.level for finding in findings} == {"ok"}, findings
    assert time.monotonic() - began < 10
    assert store.list("") == []
    assert type(open_store(store.uri)) is type(store)


def test_children_are_the_names_directly_below_a_folder(store: Store) -> None:
    for key in ("a/b/c/d", "a/b/e", "a/b-c", "a/ä", "a/b.d/x", "ab/c"):
        store.write(key, b"x")
    assert store.children("a") == ["b", "b-c", "b.d", "ä"]
    assert store.children("a/") == store.children("a")
    assert store.children("") == ["a", "ab"]
    assert store.children("a/b") == ["c", "e"]
    assert store.children("a/b/e") == store.children("no/such") == []
    store.delete("a/b.d/x")
    assert store.children("a") == ["b", "b-c", "ä"]


def test_more_children_than_a_page_has(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "PAGE_KEYS", 2)
    for number in range(5):
        store.write(f"a/{number}/below", b"x")
        store.write(f"a/{number}/beside", b"x")
    assert store.children("a") == ["0", "1", "2", "3", "4"]
    assert len(store.list("a/")) == 10 and len(store.list("a/", limit=3)) == 3
