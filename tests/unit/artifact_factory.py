"""Artifacts for tests: real manifests over small files of any bytes."""

from pathlib import Path

from infra.storage import Store, put_folder
from tasks.digests import digest_folder, list_files
from tasks.publish.artifact import MANIFEST_NAME, list_entries
from tasks.publish.channels import append_entry, read_newest
from tasks.publish.load_check import LoadEvidence
from tasks.publish.manifest import Manifest, make_manifest
from tasks.publish.provenance import Provenance, gather_provenance
from tasks.quality_records import GateReport, Metrics
from tasks.recipe import Recipe
from tasks.records import ModelRef

CREATED = "2026-11-20T02:10:00+00:00"

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "teacher": {"model": "acme/teacher"},
        "calibration": {"text": "calibration.jsonl"},
        "evaluation": {"text": "heldout.jsonl"},
        "corpus": {"sources": [{"name": "local_text"}]},
        "steps": [
            {"prune": {"sparsity": {"ffn": 0.5, "kv_groups": 0.25}}},
            {"distill": {"losses": [{"name": "forward_kl"}], "num_tokens": 1000}},
        ],
        "exports": [
            {
                "name": "int4",
                "method": "gptq",
                "format": "compressed-tensors",
                "options": {"bits": 4, "group_size": 16},
            },
            {"name": "int8", "method": "absmax", "format": "compressed-tensors"},
        ],
    }
)


def metrics(nats_per_token: float = 3.5) -> Metrics:
    return Metrics(
        nats_per_token=nats_per_token,
        perplexity=2.718281828**nats_per_token,
        num_tokens=20_000,
        num_documents=174,
        tokens_per_s=9000.0,
        protocol="heldout.jsonl, window 256, stride 256, float32, cpu",
        speed_protocol="prefill of 8 x 256 tokens, 1 thread",
        documents_uri="store://documents.json",
        digest="d" * 64,
    )


def model_ref(folder: Path, num_parameters: int = 1000) -> ModelRef:
    return ModelRef(
        uri=str(folder),
        digest=digest_folder(folder),
        architecture="LlamaForCausalLM",
        num_parameters=num_parameters,
        num_bytes=sum((folder / path).stat().st_size for path in list_files(folder)),
        facts={"ffn_width": 64},
    )


def provenance(teacher_folder: Path, created: str = CREATED) -> Provenance:
    teacher = ModelRef(
        uri=str(teacher_folder),
        digest="e" * 64,
        architecture="LlamaForCausalLM",
        num_parameters=4000,
        num_bytes=16_000,
    )
    data = {"calibration": "a" * 64, "evaluation": "b" * 64, "corpus": "c" * 64}
    gathered = gather_provenance(RECIPE, teacher, teacher_folder, metrics(3.2), data)
    return gathered.model_copy(update={"created": created})


def passed_gate() -> GateReport:
    return GateReport(passed=True, checks=[], notes=["The recipe sets no limit that applies."])


def write_files(folder: Path, content: str, num_files: int = 3) -> Path:
    """Write a folder whose bytes depend on `content`, one file of it in a folder below."""
    (folder / "deep").mkdir(parents=True)
    for index in range(num_files):
        (folder / f"part-{index}.bin").write_bytes(f"{content} {index} ".encode() * 500)
    (folder / "deep" / "config.json").write_text(f'{{"content": "{content}"}}')
    return folder


def store_artifact(
    store: Store,
    folder: Path,
    export: str = "int4",
    channel: str | None = "nightly",
    created: str = CREATED,
) -> Manifest:
    """Store a folder as an artifact, and let the channel serve it."""
    model = model_ref(folder)
    evidence = LoadEvidence(
        architecture=model.architecture,
        nats_per_token=3.5,
        reference_nats_per_token=3.5,
        num_windows=2,
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
    )
    manifest = make_manifest(
        provenance=provenance(folder, created),
        export=export,
        model=model,
        files=list_entries(folder),
        metrics=metrics(),
        gate=passed_gate(),
        load_check=evidence,
        stages=[],
        parent=None,
    )
    put_folder(store, folder, f"{manifest.prefix}/files")
    assert store.create(f"{manifest.prefix}/{MANIFEST_NAME}", manifest.to_json())
    if channel:
        newest = read_newest(store, "tiny", export, channel)
        assert append_entry(
            store, "tiny", export, channel, newest, manifest.digest, "publish", "test", "passed"
        )
    return manifest
