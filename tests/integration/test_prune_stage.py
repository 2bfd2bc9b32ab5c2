"""The prune stage: who runs it, and how often it dies, changes nothing; stock code loads it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from infra.local_executor import LocalExecutor
from infra.ray_cluster import RayExecutor
from infra.storage import FileStore, Store
from tasks.digests import list_files
from tasks.models.checkpoint import describe_model
from tasks.prune.pruning import prune
from tasks.recipe import PruneOptions
from tasks.records import ModelRef, TextRef
from tasks.report.report import PruningEvidence
from tasks.stage import Executor, StageSpace

SPARSITY = {"ffn": 0.5, "kv_groups": 0.5}
NUM_UNITS = 1 + 4 + 2
"""Units of work: the look, the sweep, the two candidates."""


class Killed(Exception):
    pass


class DyingStore(FileStore):
    """Stores `lives` units of work, then the process is gone before the next is stored."""

    def __init__(self, uri: str, lives: int) -> None:
        super().__init__(uri)
        self.lives = lives

    def create(self, key: str, data: bytes) -> bool:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
        return super().create(key, data)


@dataclass
class Pruned:
    record: ModelRef
    out: Path
    store: Store

    @property
    def evidence(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.read("stages/prune/key/evidence.json"))
        return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As a worker has: the same bytes are promised for the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tiny_llama: Path, text_file: Path, tmp_path: Path) -> Callable[..., Pruned]:
    """Run the stage on a store of the test's own, unless it is told which."""
    attempts = iter(range(100))

    def start(
        executor: Executor | None = None,
        store: Store | None = None,
        source: Path = tiny_llama,
        alignment: int = 16,
        **options: Any,
    ) -> Pruned:
        attempt = f"attempt{next(attempts)}"
        space = StageSpace(
            store=store or FileStore(f"file://{tmp_path / attempt}"),
            executor=executor or LocalExecutor(),
            prefix="stages/prune/key",
            attempt=attempt,
            scratch=tmp_path / f"scratch-{attempt}",
            progress=lambda done, total: None,
        )
        chosen = PruneOptions(
            **{
                "sparsity": SPARSITY,
                "num_submodels": 8,
                "windows_per_submodel": 2,
                "submodels_per_unit": 2,
            }
            | options
        )
        stage_options = chosen.model_dump() | {
            "seed": 0,
            "alignment": alignment,
            "num_windows": 12,
            "window": 32,
            "trust_remote_code": False,
        }
        record = prune(
            space,
            stage_options,
            model=describe_model(source, str(source)),
            calibration=TextRef(uri=str(text_file), digest="", num_bytes=0),
        )
        return Pruned(record, space.out, space.store)

    return start


def test_stock_code_loads_the_result(run: Callable[..., Pruned]) -> None:
    """In a fresh process, by the plain class, and nothing but the model lies in its folder."""
    pruned = run()
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "torch.set_num_threads(1)\n"
        "with torch.no_grad(): logits = model(torch.arange(12)[None]).logits\n"
        "torch.save(logits, sys.argv[2])"
    )
    logits_path = pruned.out.parent / "logits.pt"
    command = [sys.executable, "-c", code, str(pruned.out), str(logits_path)]
    subprocess.run(command, check=True, timeout=300)
    model = AutoModelForCausalLM.from_pretrained(pruned.out).eval()
    with torch.no_grad():
        expected = model(torch.arange(12)[None]).logits
    assert torch.equal(torch.load(logits_path), expected)
    config = model.config
    assert (config.intermediate_size, config.head_dim) == (32, 8)
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert pruned.record.num_parameters == model.num_parameters()
    assert "evidence.json" not in list_files(pruned.out)


def test_facts_and_evidence_say_what_was_done(run: Callable[..., Pruned]) -> None:
    pruned = run()
    facts, evidence = pruned.record.facts, pruned.evidence
    assert facts["shape"] == "KV groups 2 -> 1, FFN 64 -> 32"
    assert facts["sparsity_got_all"] == facts["sparsity_asked_ffn"] == 0.5
    known = {name: evidence[name] for name in PruningEvidence.model_fields if name in evidence}
    read = PruningEvidence.model_validate({"title": "1 prune"} | known)
    assert [len(units) for units in read.importance["ffn"]] == [64, 64]
    assert read.kept == {"kv_groups": [1, 1], "ffn": [32, 32]}
    assert len(read.predicted) == len(read.measured) == 8
    assert read.kendall_tau == pytest.approx(facts["kendall_tau"], abs=1e-3)
    nats = {name: cut["nats_per_token"] for name, cut in evidence["candidates"].items()}
    assert evidence["chosen"] == min(nats, key=lambda name: nats[name])


@pytest.mark.integration
def test_the_number_of_workers_changes_nothing(run: Callable[..., Pruned], tmp_path: Path) -> None:
    here = run()
    for num_workers in (1, 2):
        executor = RayExecutor("local", num_workers, 0, 1, tmp_path)
        try:
            there = run(executor)
        finally:
            executor.close()
        assert there.record.digest == here.record.digest
        assert there.evidence == here.evidence


@pytest.mark.parametrize("lives", range(NUM_UNITS))
def test_a_killed_stage_goes_on_to_the_same_bytes(
    run: Callable[..., Pruned], tmp_path: Path, lives: int
) -> None:
    undisturbed = run()
    uri = f"file://{tmp_path / 'dying'}"
    with pytest.raises(Killed):
        run(store=DyingStore(uri, lives))
    stored = len(FileStore(uri).list("stages/prune/key/units/"))
    resumed = run(store=FileStore(uri))
    assert stored == lives
    assert resumed.record.digest == undisturbed.record.digest
    assert resumed.evidence == undisturbed.evidence
    assert len(resumed.store.list("stages/prune/key/units/")) == NUM_UNITS


def test_the_criterion_alone_needs_no_sweep(run: Callable[..., Pruned]) -> None:
    pruned = run(method="criterion")
    assert not pruned.store.list("stages/prune/key/units/sweep/")
    assert "r_squared" not in pruned.record.facts
    assert pruned.evidence["chosen"] == "criterion"


def test_repair_is_an_option(run: Callable[..., Pruned]) -> None:
    """It changes the writers and nothing else."""
    repaired, plain = run(method="criterion"), run(method="criterion", repair=False)
    weights = [AutoModelForCausalLM.from_pretrained(p.out).state_dict() for p in (repaired, plain)]
    changed = {name for name, weight in weights[0].items() if not weight.equal(weights[1][name])}
    assert changed == {name for name in weights[0] if "o_proj" in name or "down_proj" in name}


def test_a_step_follows_a_step(run: Callable[..., Pruned], make_llama: Callable[..., Path]) -> None:
    wide = make_llama(num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    first = run(source=wide)
    second = run(source=first.out, sparsity={"ffn": 0.5, "kv_groups": 0.0}, alignment=1)
    assert second.record.facts["shape"] == "KV groups 2 -> 2, FFN 32 -> 16"


def test_too_few_windows_are_refused_at_once(run: Callable[..., Pruned]) -> None:
    with pytest.raises(ValueError, match=r"windows_per_submodel is 12.*at most 11"):
        run(windows_per_submodel=12)
