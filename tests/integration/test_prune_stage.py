"""The prune stage: who runs it, and how often it dies, changes nothing; stock code loads it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from infra.ray_cluster import RayExecutor
from infra.storage import FileStore, Store
from tasks.digests import list_files
from tasks.report.stage_evidence import describe_pruning
from tasks.stage_space import Executor
from tests.integration.prune_run import NUM_UNITS, PREFIX, Pruned, run_stage

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.fixture
def run(tiny_llama: Path, text_file: Path, tmp_path: Path) -> Callable[..., Pruned]:
    """Run the stage on a store of the test's own, unless it is told which."""
    attempts = iter(range(100))

    def start(
        executor: Executor | None = None,
        store: Store | None = None,
        source: Path = tiny_llama,
        **options: Any,
    ) -> Pruned:
        attempt = f"attempt{next(attempts)}"
        return run_stage(
            source,
            text_file,
            store or FileStore(f"file://{tmp_path / attempt}"),
            tmp_path / f"scratch-{attempt}",
            executor,
            **options,
        )

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
    read = describe_pruning("1 prune", evidence)
    assert [len(units) for units in read.importance["ffn"]] == [64, 64]
    assert read.kept == {"kv_groups": [1, 1], "ffn": [32, 32]}
    assert len(read.predicted) == len(read.measured) == 8
    assert read.kendall_tau == pytest.approx(facts["kendall_tau"], abs=1e-3)
    nats = {name: cut["nats_per_token"] for name, cut in evidence["candidates"].items()}
    assert evidence["chosen"] == min(nats, key=lambda name: nats[name]) == read.chosen
    assert read.candidates == nats
    assert read.removed == facts["sparsity_got_all"]
    assert read.kept_units == evidence["kept_units"]


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
    stored = len(FileStore(uri).list(f"{PREFIX}/units/"))
    resumed = run(store=FileStore(uri))
    assert stored == lives
    assert resumed.record.digest == undisturbed.record.digest
    assert resumed.evidence == undisturbed.evidence
    assert len(resumed.store.list(f"{PREFIX}/units/")) == NUM_UNITS


def test_the_criterion_alone_needs_no_sweep(run: Callable[..., Pruned]) -> None:
    pruned = run(method="criterion")
    assert not pruned.store.list(f"{PREFIX}/units/sweep/")
    assert "r_squared" not in pruned.record.facts
    assert pruned.evidence["chosen"] == "criterion"


def test_repair_is_an_option(run: Callable[..., Pruned]) -> None:
    """It changes writers, and readers of a stream that earlier cuts have moved; nothing else."""
    repaired, plain = run(method="criterion"), run(method="criterion", repair=False)
    weights = [AutoModelForCausalLM.from_pretrained(p.out).state_dict() for p in (repaired, plain)]
    changed = {name for name, weight in weights[0].items() if not weight.equal(weights[1][name])}
    projections = {name for name in weights[0] if "_proj" in name}
    writers = {name for name in projections if "o_proj" in name or "down_proj" in name}
    assert changed <= projections
    assert writers | {name for name in projections if "layers.1" in name} <= changed


def test_a_step_follows_a_step(run: Callable[..., Pruned], make_llama: Callable[..., Path]) -> None:
    wide = make_llama(num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    first = run(source=wide)
    second = run(source=first.out, sparsity={"ffn": 0.5, "kv_groups": 0.0}, alignment=1)
    assert second.record.facts["shape"] == "KV groups 2 -> 2, FFN 32 -> 16"


def test_too_few_windows_are_refused_at_once(run: Callable[..., Pruned]) -> None:
    with pytest.raises(ValueError, match=r"windows_per_submodel is 12.*at most 11"):
        run(windows_per_submodel=12)
