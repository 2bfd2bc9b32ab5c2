"""How many requests a bucket gets: none of them grows with what else is in the store."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.storage import S3Store
from tasks.publish.channels import append_entry, read_newest
from tasks.publish.listing import INDEX, list_artifacts, read_index
from tasks.publish.pulling import pull
from tasks.publish.references import show
from tasks.report.catalogue import write_catalogue
from tests.conformance.empty_bucket import empty_bucket_store
from tests.conformance.moto_server import running_moto
from tests.unit.artifact_factory import store_artifact, write_files
from tests.unit.faulty_relay import Request, running_relay

Count = Callable[[Callable[[], object]], dict[str, int]]


@pytest.fixture(scope="module")
def moto() -> Iterator[dict[str, str]]:
    with running_moto() as environment:
        yield environment


@pytest.fixture
def bucket(moto: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    return empty_bucket_store(moto, tmp_path, monkeypatch)


@pytest.fixture
def count(moto: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Count:
    """Call something with a relay before the server; return its requests by kind."""

    def call(work: Callable[[], object]) -> dict[str, int]:
        seen: Counter[str] = Counter()

        def note(request: Request) -> None:
            listing = request.method == "GET" and "list-type=2" in request.path
            seen["LIST" if listing else request.method] += 1

        with running_relay(moto["AWS_ENDPOINT_URL"], note) as url, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", url)
            work()
        return dict(seen)

    return call


def fill(bucket: S3Store, tmp_path: Path, num_artifacts: int) -> None:
    for number in range(num_artifacts):
        store_artifact(bucket, write_files(tmp_path / f"{number}", f"{number}"))


def test_a_channel_is_one_listing_of_one_key_and_that_entry(
    bucket: S3Store, tmp_path: Path, count: Count
) -> None:
    fill(bucket, tmp_path, 1)
    for _ in range(20):  # a history, of which nothing else is looked at
        newest = read_newest(bucket, "tiny", "int4", "nightly")
        assert newest
        append_entry(
            bucket, "tiny", "int4", "nightly", newest, newest.digest, "promote", "test", "again"
        )
    requests = count(lambda: read_newest(bucket, "tiny", "int4", "nightly"))
    assert requests == {"LIST": 1, "GET": 1}
    assert count(lambda: read_newest(bucket, "tiny", "int4", "empty")) == {"LIST": 1}


@pytest.mark.parametrize("num_artifacts", [1, 6])
def test_what_a_pull_reads_before_its_files_does_not_grow(
    bucket: S3Store, tmp_path: Path, count: Count, num_artifacts: int
) -> None:
    fill(bucket, tmp_path, num_artifacts)
    assert count(lambda: show(bucket, "tiny/int4")) == {"LIST": 1, "GET": 2}
    assert count(lambda: show(bucket, "tiny")) == {"LIST": 2, "GET": 2}
    dest = tmp_path / "pulled"
    pull(bucket, "tiny/int4", dest)
    again = count(lambda: pull(bucket, "tiny/int4", dest))  # all files are in place
    assert again == {"LIST": 1, "GET": 3}


def test_a_manifest_is_read_once_for_all_who_list(
    bucket: S3Store, tmp_path: Path, count: Count
) -> None:
    """recipes, exports, artifacts, channels, a channel; the index, its entry."""
    fill(bucket, tmp_path, 4)
    around = {"LIST": 5, "GET": 2}
    assert count(lambda: list_artifacts(bucket)) == around | {"GET": 2 + 4}
    write_catalogue(bucket)
    assert count(lambda: list_artifacts(bucket)) == around
    listed = list_artifacts(bucket)
    assert [row.channels for row in read_index(bucket)] == [[]] * 4
    newest = store_artifact(bucket, write_files(tmp_path / "new", "new"))
    assert count(lambda: list_artifacts(bucket)) == around | {"GET": 2 + 1}
    assert {row.digest for row in list_artifacts(bucket)} == {
        newest.digest,
        *(row.digest for row in listed),
    }


def test_an_index_that_is_wrong_is_no_index(bucket: S3Store, tmp_path: Path) -> None:
    fill(bucket, tmp_path, 2)
    listed = list_artifacts(bucket)
    for data in (b"", b"{}", b'{"schema_version": 99, "artifacts": []}', b'{"artifacts": [1]}'):
        bucket.write(INDEX, data)
        assert list_artifacts(bucket) == listed


def test_what_is_gone_is_not_listed_whatever_the_index_says(
    bucket: S3Store, tmp_path: Path
) -> None:
    gone, stays = (store_artifact(bucket, write_files(tmp_path / n, n)) for n in "ab")
    write_catalogue(bucket)
    for key in bucket.list(f"{gone.prefix}/"):
        bucket.delete(key)
    bucket.write(f"artifacts/tiny/int4/{'0' * 64}/files/half", b"of an upload")
    assert [row.digest for row in list_artifacts(bucket)] == [stays.digest]
