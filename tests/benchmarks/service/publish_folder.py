"""Publish a folder: `python -m tests.benchmarks.service.publish_folder FOLDER STORE`.

What a night does for an export after its gate and its load check; it prints the seconds, from when
all libraries are imported and the store has answered once, as they are and it has in a night. The
export's digest and the run's provenance are known by then.
"""

import json
import sys
import time
from pathlib import Path

from infra.storage import open_store
from tasks import digests
from tasks.publish.artifact import artifact_prefix
from tasks.publish.channels import append_entry, read_newest
from tasks.publish.load_check import LoadEvidence
from tasks.publish.manifest import make_manifest
from tasks.publish.provenance import Provenance
from tasks.publish.publishing import write_files, write_manifest
from tasks.records import ModelRef
from tests.unit.artifact_factory import metrics, passed_gate, provenance


def publish(folder: Path, store_uri: str, digest: str, made_by: Provenance) -> None:
    store = open_store(store_uri)
    files = write_files(store, artifact_prefix("tiny", "int4", digest), folder)
    manifest = make_manifest(
        provenance=made_by,
        export="int4",
        model=ModelRef(
            uri=str(folder),
            digest=digest,
            architecture="LlamaForCausalLM",
            num_parameters=1,
            num_bytes=sum(entry.bytes for entry in files.values()),
        ),
        files=files,
        metrics=metrics(),
        gate=passed_gate(),
        load_check=LoadEvidence(
            architecture="LlamaForCausalLM",
            nats_per_token=3.5,
            reference_nats_per_token=3.5,
            num_windows=2,
            versions={},
        ),
        stages=[],
        parent=None,
    )
    write_manifest(store, manifest, "card", "report", signing_key=None)
    newest = read_newest(store, "tiny", "int4", "nightly")
    append_entry(store, "tiny", "int4", "nightly", newest, digest, "publish", "bench", "measured")


if __name__ == "__main__":
    open_store(sys.argv[2]).exists("any")
    digest = digests.digest_folder(Path(sys.argv[1]))
    digests._digest_file.cache_clear()
    made_by = provenance(Path(sys.argv[1]))
    began = time.monotonic()
    publish(Path(sys.argv[1]), sys.argv[2], digest, made_by)
    print(json.dumps({"seconds": time.monotonic() - began}))
