"""Signatures: what is not signed with the given key is not pulled, and nothing is written."""

import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from infra.storage import FileStore
from tasks.errors import StorageError
from tasks.publish import publishing
from tasks.publish.artifact import MANIFEST_NAME
from tasks.publish.load_check import LoadEvidence, Probe
from tasks.publish.manifest import Manifest
from tasks.publish.publishing import Release, publish_export
from tasks.publish.pulling import pull
from tasks.publish.signing import (
    SIGNATURE_NAME,
    describe_signature,
    load_signing_key,
    load_verify_key,
    sign_manifest,
)
from tests.unit.artifact_factory import (
    metrics,
    model_ref,
    passed_gate,
    provenance,
    store_artifact,
    write_files,
)


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a new pair of PEM files: (private, public)."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path / 'store'}")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path, "ours")


@pytest.fixture(autouse=True)
def quick_load_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files here are no model; the load gate has tests of its own."""
    evidence = LoadEvidence(
        architecture="LlamaForCausalLM",
        nats_per_token=3.5,
        reference_nats_per_token=3.5,
        num_windows=2,
        versions={"transformers": "5.23.0"},
    )
    monkeypatch.setattr(publishing, "check_loads", lambda *_: evidence)


def publish(store: FileStore, folder: Path, key: Path | None, created: str = "2026-11-21") -> None:
    release = Release(
        export="int4",
        model=model_ref(folder),
        metrics=metrics(),
        gate=passed_gate(),
        champion=None,
        stages=[],
        provenance=provenance(folder, created),
    )
    publish_export(
        store, release, Probe(ids=[], nats_per_token=0), "", "nightly", "n", "w", None, None, key
    )


@pytest.fixture
def signed(store: FileStore, keys: tuple[Path, Path], tmp_path: Path) -> str:
    """Prefix of a signed artifact in the store."""
    publish(store, write_files(tmp_path / "a", "a"), keys[0])
    (key,) = [key for key in store.list("artifacts/") if key.endswith(SIGNATURE_NAME)]
    return key.removesuffix(f"/{SIGNATURE_NAME}")


def refuse(store: FileStore, public: Path, match: str, dest: Path) -> None:
    with pytest.raises(StorageError, match=match):
        pull(store, "tiny/int4", dest, verify_key=public)
    assert not dest.parent.exists(), "nothing is written"


def test_the_right_key_pulls(
    store: FileStore, signed: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    dest = tmp_path / "new" / "model"
    manifest = pull(store, "tiny", dest, verify_key=keys[1])
    assert sorted(manifest.files) == sorted(
        p.relative_to(dest).as_posix()
        for p in dest.rglob("*")
        if p.is_file() and p.name != MANIFEST_NAME
    )
    said = describe_signature(store, signed)
    public = load_verify_key(keys[1]).public_bytes_raw().hex()
    assert said is not None and public[:16] in said
    secret = load_signing_key(keys[0]).private_bytes_raw()
    everything = b"".join(store.read(key) for key in store.list(""))
    assert secret not in everything and secret.hex().encode() not in everything


def test_another_key_no_signature_and_a_changed_manifest_are_refused(
    store: FileStore, signed: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    dest = tmp_path / "new" / "model"
    _, other = make_keys(tmp_path, "theirs")
    refuse(store, other, "not made with the given key", dest)

    manifest_key = f"{signed}/{MANIFEST_NAME}"
    good = store.read(manifest_key)
    better = json.loads(good)
    better["metrics"]["nats_per_token"] = 0.1
    store.write(manifest_key, json.dumps(better).encode())
    refuse(store, keys[1], "not what was signed", dest)
    assert describe_signature(store, signed) == "the signature does not fit the manifest"
    store.write(manifest_key, good + b"\n")
    refuse(store, keys[1], "not what was signed", dest)
    store.write(manifest_key, good)

    signature = store.read(f"{signed}/{SIGNATURE_NAME}")
    for damaged in (b"", b"{}", b"[]", signature.replace(b"ed25519", b"none"), signature[:-9]):
        store.write(f"{signed}/{SIGNATURE_NAME}", damaged)
        refuse(store, keys[1], "is not signed", dest)
    store.delete(f"{signed}/{SIGNATURE_NAME}")
    refuse(store, keys[1], "is not signed", dest)
    assert describe_signature(store, signed) is None
    pull(store, "tiny", dest)  # nobody asked


def test_a_changed_signature_of_any_kind_is_refused(
    store: FileStore, signed: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Every field of it, one character at a time in turn."""
    name = f"{signed}/{SIGNATURE_NAME}"
    good = json.loads(store.read(name))
    for position in range(0, 128, 9):
        digit = "0" if good["signature"][position] != "0" else "1"
        bad = good["signature"][:position] + digit + good["signature"][position + 1 :]
        store.write(name, json.dumps(good | {"signature": bad}).encode())
        refuse(store, keys[1], "not made with the given key", tmp_path / "new" / "model")
    store.write(name, json.dumps(good | {"manifest": good["manifest"] + " "}).encode())
    refuse(store, keys[1], "not made with the given key", tmp_path / "new" / "model")


def test_another_artifacts_signature_does_not_serve(
    store: FileStore, signed: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other = store_artifact(store, write_files(tmp_path / "b", "b"))
    store.write(f"{other.prefix}/{SIGNATURE_NAME}", store.read(f"{signed}/{SIGNATURE_NAME}"))
    refuse(store, keys[1], "not what was signed", tmp_path / "new" / "model")


def test_a_publisher_that_was_killed_leaves_a_signature_that_fits_in_the_end(
    store: FileStore, signed: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    first = store.read(f"{signed}/{MANIFEST_NAME}")
    store.delete(f"{signed}/{MANIFEST_NAME}")  # as if killed between the two
    publish(store, tmp_path / "a", keys[0], created="2026-11-22")
    assert store.read(f"{signed}/{MANIFEST_NAME}") == first
    pull(store, "tiny", tmp_path / "model", verify_key=keys[1])


def test_a_leftover_of_another_key_or_artifact_is_replaced(
    store: FileStore, signed: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    store.delete(f"{signed}/{MANIFEST_NAME}")
    private, public = make_keys(tmp_path, "next year's")
    publish(store, tmp_path / "a", private)
    pull(store, "tiny", tmp_path / "model", verify_key=public)

    folder = write_files(tmp_path / "b", "b")
    digest = model_ref(folder).digest
    planted = f"artifacts/tiny/int4/{digest}/{SIGNATURE_NAME}"
    store.write(planted, store.read(f"{signed}/{SIGNATURE_NAME}"))
    release_key = private
    data = store.read(f"{signed}/{MANIFEST_NAME}")
    assert sign_manifest(store, f"artifacts/tiny/int4/{digest}", b"{}", release_key) == b"{}"
    assert Manifest.model_validate_json(data).prefix == signed


def test_a_pull_again_replaces_a_manifest_that_was_not_signed(
    store: FileStore, signed: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    dest = tmp_path / "model"
    pull(store, "tiny", dest)
    forged = json.loads((dest / MANIFEST_NAME).read_text())
    forged["metrics"]["nats_per_token"] = 0.1
    (dest / MANIFEST_NAME).write_text(json.dumps(forged))
    pull(store, "tiny", dest, verify_key=keys[1])
    assert (dest / MANIFEST_NAME).read_bytes() == store.read(f"{signed}/{MANIFEST_NAME}")


def test_without_a_key_nothing_is_signed(store: FileStore, tmp_path: Path) -> None:
    publish(store, write_files(tmp_path / "a", "a"), None)
    assert not [key for key in store.list("") if key.endswith(SIGNATURE_NAME)]


def test_keys_that_are_none_say_what_would_be(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other = tmp_path / "ed448.pem"
    pem = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    other.write_bytes(Ed448PrivateKey.generate().private_bytes(*pem))
    for wrong in (keys[1], tmp_path / "absent.pem", other):
        with pytest.raises(ValueError, match="openssl genpkey -algorithm ed25519"):
            load_signing_key(wrong)
    for wrong in (keys[0], tmp_path / "absent.pem"):
        with pytest.raises(ValueError, match="openssl pkey"):
            load_verify_key(wrong)


def test_openssls_keys_are_read(tmp_path: Path) -> None:
    """As the messages tell people to make them."""
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    for arguments in (
        ["genpkey", "-algorithm", "ed25519", "-out", str(private)],
        ["pkey", "-in", str(private), "-pubout", "-out", str(public)],
    ):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    signer = load_signing_key(private)
    load_verify_key(public).verify(signer.sign(b"x"), b"x")
