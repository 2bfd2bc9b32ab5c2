"""What a run's artifacts have in common: teacher, data, code, libraries, hardware, licence.

Facts are named one by one. The environment is never copied, so no secret can be among them.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from infra.gpus import list_gpus
from tasks.code_version import PACKAGES, ROOT, code_version, library_version
from tasks.digests import digest_file
from tasks.quality_records import Metrics
from tasks.records import CorpusRef, ModelRef, Record
from tasks.safe_yaml import parse_yaml

if TYPE_CHECKING:
    from tasks.recipe import Recipe

LIBRARIES = (
    "nightpress",
    "torch",
    "transformers",
    "compressed-tensors",
    "deepspeed",
    "numpy",
    "prefect",
    "ray",
    "safetensors",
    "tokenizers",
)
LOCK = ROOT / "constraints.txt"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")


class Licence(Record):
    """The teacher's licence, which holds for every model made from it."""

    name: str | None
    """The identifier in the teacher's model card, such as `apache-2.0`; None where it has none."""
    files: list[str]
    """Licence texts that travel with the weights."""


class Provenance(Record):
    """Where all artifacts of one run come from."""

    created: str
    """UTC, ISO 8601."""
    recipe: dict[str, Any]
    """Resolved: plugins' defaults filled in, paths absolute."""
    seed: int
    alignment: int
    """The multiple to which every pruned width was kept."""
    teacher: ModelRef
    teacher_metrics: Metrics | None
    """None where nothing was evaluated, as before a data set."""
    data: dict[str, str]
    """sha256 by use of what the recipe names: calibration, evaluation, sources, students."""
    corpus_digest: str | None = None
    """sha256 of the packed corpus that students learned from."""
    corpus_licences: dict[str, int] = Field(default_factory=dict)
    """Its rows by the licence that they are under; `unknown` where none is stated."""
    code_version: str
    """sha256 over nightpress's own sources."""
    lock_digest: str | None = None
    """sha256 of constraints.txt, which pins every library; None where the install has none."""
    libraries: dict[str, str]
    hardware: dict[str, str | int]
    """Of the machine that published; each stage names its nodes and devices."""
    licence: Licence


def gather_provenance(
    recipe: Recipe,
    teacher: ModelRef,
    teacher_folder: Path,
    teacher_metrics: Metrics | None,
    data: dict[str, str],
    corpus: CorpusRef | None = None,
) -> Provenance:
    sources = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=recipe.model_dump(mode="json"),
        seed=recipe.seed,
        alignment=recipe.alignment,
        teacher=teacher,
        teacher_metrics=teacher_metrics,
        data=data,
        corpus_digest=corpus.digest if corpus else None,
        corpus_licences=corpus.licences if corpus else {},
        code_version=code_version(sources),
        lock_digest=digest_file(LOCK) if LOCK.is_file() else None,
        libraries={name: library_version(name) for name in LIBRARIES},
        hardware=describe_hardware(),
        licence=find_licence(teacher_folder),
    )


def describe_hardware() -> dict[str, str | int]:
    """Name processor, memory and GPUs without importing torch."""
    facts: dict[str, str | int] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "num_cpus": os.cpu_count() or 1,
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30,
    }
    if gpus := list_gpus():
        facts["gpus"] = ", ".join(gpu.name for gpu in gpus)
    return facts


def find_licence(teacher_folder: Path) -> Licence:
    """Read the licence from the front matter of the teacher's model card, and list its texts."""
    name = None
    card = teacher_folder / "README.md"
    if card.is_file():
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        try:
            has_matter = len(parts) == 3 and not parts[0].strip()
            matter = parse_yaml(parts[1], str(card)) if has_matter else None
        except ValueError:  # a stranger's card is no reason for a night to fail
            matter = None
        found = matter.get("license") if isinstance(matter, dict) else None
        name = found if isinstance(found, str) else None
    files = [name for name in LICENCE_FILES if (teacher_folder / name).is_file()]
    return Licence(name=name, files=files)
