"""Signatures of manifests: who published an artifact, provable without trust in the store.

`manifest.sig` lies beside `manifest.json` and is created before it. It holds the very bytes that
were signed, so a publisher that finds one of its own (it was killed, or another run was a moment
earlier) publishes those bytes instead of its own: signature and manifest always fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME
from tasks.publish.manifest import parse_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    from infra.storage import Store

SIGNATURE_NAME = "manifest.sig"


class Signature(BaseModel):
    """`manifest.sig`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The signer's, raw; a hint whose signature this is, and no reason to trust it."""
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    """Of the UTF-8 bytes of `manifest`."""
    manifest: str
    """`manifest.json`, byte for byte."""


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Raises: ValueError: it is not a readable PEM file with an ed25519 private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        key, problem = None, type(error).__name__  # a key's own bytes stay out of messages
    else:
        problem = type(key).__name__
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(
            f"NIGHTPRESS_SIGNING_KEY: expected an ed25519 private key in a PEM file without a "
            f"password at {path}, got {problem}; `openssl genpkey -algorithm ed25519 -out "
            "key.pem` makes one"
        )
    return key


def load_verify_key(path: Path) -> Ed25519PublicKey:
    """Raises: ValueError: it is not a readable PEM file with an ed25519 public key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        key, problem = None, type(error).__name__
    else:
        problem = type(key).__name__
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(
            f"expected an ed25519 public key in a PEM file at {path}, got {problem}; `openssl pkey "
            "-in key.pem -pubout -out pub.pem` makes it from the private key"
        )
    return key


def sign_manifest(store: Store, prefix: str, data: bytes, key_path: Path) -> bytes:
    """Store a manifest's signature; return the bytes that it is of.

    They are `data`, or those of a manifest that was signed with the same key before.
    """
    key = load_signing_key(key_path)
    made = Signature(
        public_key=key.public_key().public_bytes_raw().hex(),
        signature=key.sign(data).hex(),
        manifest=data.decode(),
    )
    document = made.model_dump_json(indent=1).encode()
    if store.create(f"{prefix}/{SIGNATURE_NAME}", document):
        return data
    found = read_signature(store, prefix)
    if found and fits(found, key.public_key()):
        earlier = found.manifest.encode()
        if parse_manifest(earlier, f"{store.uri}/{prefix}/{SIGNATURE_NAME}").prefix == prefix:
            return earlier
    store.write(f"{prefix}/{SIGNATURE_NAME}", document)  # another key's, or another artifact's
    return data


def read_signature(store: Store, prefix: str) -> Signature | None:
    """Return what lies beside a manifest; None where there is nothing that can be read as one."""
    try:
        return Signature.model_validate_json(store.read(f"{prefix}/{SIGNATURE_NAME}"))
    except (FileNotFoundError, ValidationError):
        return None


def fits(found: Signature, key: Ed25519PublicKey) -> bool:
    """Whether the signature was made with the key, of the manifest that it holds."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(found.signature), found.manifest.encode())
    except InvalidSignature:
        return False
    return True


def check_signature(store: Store, prefix: str, data: bytes, key: Ed25519PublicKey) -> None:
    """Make sure that `data`, a manifest as it was read, was signed with a key.

    Raises:
        StorageError: it was not.
    """
    where = f"{store.uri}/{prefix}/{MANIFEST_NAME}"
    found = read_signature(store, prefix)
    if found is None:
        raise StorageError(
            f"{where} is not signed",
            "it was published without NIGHTPRESS_SIGNING_KEY; pull without --verify-key only if "
            "you trust everybody who can write to the store",
        )
    if not fits(found, key):
        raise StorageError(
            f"{where}: its signature was not made with the given key",
            f"it says that it is of the key {found.public_key[:16]}...; ask who published it",
        )
    if found.manifest.encode() != data:
        raise StorageError(
            f"{where} is not what was signed", "somebody changed it; publish the artifact again"
        )


def describe_signature(store: Store, prefix: str) -> str | None:
    """Say in a few words with which key an artifact is signed; None where it is not."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = read_signature(store, prefix)
    if found is None:
        return None
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.public_key))
    if not fits(found, key) or found.manifest.encode() != store.read(f"{prefix}/{MANIFEST_NAME}"):
        return "the signature does not fit the manifest"
    return f"with the ed25519 key {found.public_key[:16]}... (pull --verify-key holds it to yours)"
