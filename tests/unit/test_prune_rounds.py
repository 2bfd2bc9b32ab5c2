"""Rounds: the shapes on the way, and that each one looks again at what is left."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.local_executor import LocalExecutor
from tasks.digests import digest_file, list_files
from tasks.models.checkpoint import describe_model
from tasks.plugins import load_plugin
from tasks.prune.bench import Work, build_bench
from tasks.prune.pruning import prune
from tasks.prune.rounds import Trial, look_again, try_cut
from tasks.prune.shapes.schedule import schedule_rounds
from tasks.prune.sweep.sweep import Choice
from tasks.prune.unit_statistics import calibrate
from tasks.prune_options import PruneOptions
from tasks.records import TextRef
from tests.unit.stage_space import make_space

pytestmark = pytest.mark.usefixtures("one_thread")

PREFIX = "stages/prune/key"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_way_leads_down_to_the_final_shape(data: st.DataObject) -> None:
    """Whatever numbers some config refuses on the way."""
    num_units = data.draw(st.fixed_dictionaries({k: st.integers(2, 60) for k in "abc"}))
    choices = {
        kind: tuple(sorted(data.draw(st.sets(st.integers(1, number), min_size=1))))
        for kind, number in num_units.items()
    }
    num_kept = {k: data.draw(st.sampled_from([*c, num_units[k]])) for k, c in choices.items()}
    refused = data.draw(st.sets(st.integers(1, 60)))

    def accepts(shape: dict[str, int]) -> bool:
        return shape["a"] not in refused

    rounds = data.draw(st.integers(1, 6))
    schedule = schedule_rounds(num_units, num_kept, choices, rounds, accepts)
    assert schedule[-1] == num_kept
    assert len(schedule) <= rounds
    for before, after in pairwise([num_units, *schedule]):
        assert before != after or num_kept == num_units
        assert all(after[kind] <= before[kind] for kind in "abc")
    for shape in schedule[:-1]:
        assert shape["a"] not in refused or shape["a"] == num_units["a"]
        assert all(shape[k] in (*choices[k], num_units[k]) for k in "abc")


def test_every_round_removes_the_same_fraction() -> None:
    schedule = schedule_rounds(
        {"ffn": 512, "kv_groups": 2},
        {"ffn": 64, "kv_groups": 1},
        {"ffn": tuple(range(32, 513, 32)), "kv_groups": (1, 2)},
        3,
        lambda _: True,
    )
    assert [shape["ffn"] for shape in schedule] == [256, 128, 64]
    assert schedule_rounds({"layers": 3}, {"layers": 2}, {"layers": (1, 2, 3)}, 5, bool) == [
        {"layers": 2}
    ]


class Interrupted(LocalExecutor):
    """Works as a process does that is killed after some units of work."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def map(
        self,
        fn: Callable[[Any, Any], Any],
        units: Iterable[Any],
        state: Callable[[], Any],
        num_workers: int | None = None,
    ) -> Iterator[Any]:
        for result in super().map(fn, units, state, num_workers):
            self.units -= 1
            yield result
            if not self.units:
                raise KeyboardInterrupt


Run = Callable[..., tuple[dict[str, Any], dict[str, Any], dict[str, str]]]


@pytest.fixture
def run(make_llama: Callable[..., Path], text_file: Path, tmp_path: Path) -> Run:
    """Run the stage; return its facts, its evidence, and its files' digests."""
    source = make_llama(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4)
    attempts = iter(range(9))

    def start(
        store: Path, executor: LocalExecutor | None = None, **chosen: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        space = make_space(
            store, tmp_path / f"scratch{next(attempts)}", prefix=PREFIX, executor=executor
        )
        text = TextRef(uri=str(text_file), digest="", num_bytes=0)
        model = describe_model(source, str(source))
        record = prune(space, list_options(**chosen), model=model, calibration=text)
        evidence = json.loads(space.store.read(f"{PREFIX}/evidence.json"))
        digests = {path: digest_file(space.out / path) for path in list_files(space.out)}
        return record.facts, evidence, digests

    return start


def list_options(**chosen: Any) -> dict[str, Any]:
    settings = {"num_submodels": 4, "submodels_per_unit": 2, "windows_per_submodel": 2}
    return PruneOptions(**settings | chosen).model_dump() | {
        "seed": 0,
        "alignment": 8,
        "num_windows": 12,
        "window": 32,
        "trust_remote_code": False,
    }


def test_rounds_reach_the_shape_of_one_and_resume_to_the_same_bytes(
    run: Run, tmp_path: Path
) -> None:
    half = {"sparsity": {"ffn": 0.75, "kv_groups": 0.5}}
    facts, evidence, digests = run(tmp_path / "undisturbed", rounds=2, **half)
    told = evidence["rounds"]
    assert [r["kept"] for r in told] == [
        {"kv_groups": 3, "ffn": 32},
        {"kv_groups": 2, "ffn": 16},
    ]
    assert evidence["kept"] == {"kv_groups": [2] * 3, "ffn": [16] * 3}
    assert facts["kept_round_1"] == "KV groups 4 -> 3, FFN 64 -> 32"
    assert facts["calibration_nats_round_1"] == round(told[0]["nats_per_token"], 4)
    candidates = evidence["candidates"]
    assert told[1]["nats_per_token"] == candidates[told[1]["chosen"]]["nats_per_token"]
    best = min(candidates.values(), key=lambda cut: cut["nats_per_token"])
    assert candidates[evidence["chosen"]] == best

    num_units = len(list((tmp_path / "undisturbed").rglob("units/**/0*")))
    assert num_units == 1 + (2 + 2) + (2 + len(candidates))
    resumed = tmp_path / "resumed"
    for _ in range(num_units):
        try:
            again = run(resumed, Interrupted(3), rounds=2, **half)
        except KeyboardInterrupt:
            continue
        break
    assert again == (facts, evidence, digests)


def test_what_is_cut_stays_cut(run: Run, tmp_path: Path) -> None:
    """The second round chooses among what the first one kept, by a look at that model."""
    _, evidence, _ = run(
        tmp_path / "store", rounds=3, method="criterion", sparsity={"ffn": 0.75, "layers": 0.34}
    )
    assert [r["kept"]["ffn"] for r in evidence["rounds"]] == [40, 24, 16]
    assert [r["kept"]["layers"] for r in evidence["rounds"]] == [3, 2, 2]
    assert set(evidence["candidates"]) <= {"one_round", "criterion"}
    for importance, kept in zip(
        evidence["importance"]["ffn"], evidence["kept_units"]["ffn"], strict=True
    ):
        others = set(range(64)) - set(kept)
        assert min(importance[u] for u in kept) >= max(importance[u] for u in others)


def test_a_look_at_what_is_left_finds_every_unit_in_its_place(
    make_llama: Callable[..., Path], text_file: Path
) -> None:
    """Magnitudes know no context: those of what is left are those of the incoming model."""
    source = make_llama(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
    options = list_options(
        repair=False,
        criterion={"name": "magnitude"},
        sparsity={"ffn": 0.5, "kv_groups": 0.5, "layers": 0.5},
    )
    options["criterion"]["options"] = {"scope": "global"}
    bench = build_bench(Work(Path, str(source), str(text_file), options))
    rng = np.random.default_rng(0)
    num_kept = {"ffn": 40, "kv_groups": 2, "layers": 3}
    kept = [rng.permutation(g.num_units) < num_kept[g.kind] for g in bench.groups]
    answer = json.loads(try_cut(bench, Trial(kept, bench.shape.num_kept)))

    asked = calibrate(bench.model, bench.groups, bench.ids_WS, [1] * len(bench.groups))[0]
    dense = [s.double().numpy() for s in load_plugin("criterion", "magnitude")(asked)]
    (off,) = np.flatnonzero(~kept[-1])
    for group, mask, scores, found in zip(
        bench.groups, kept, dense, answer["importance"], strict=True
    ):
        settled = group.kind == "kv_groups" or group.layer == off
        assert (found is None) == settled
        if group.kind == "ffn" and found is not None:
            np.testing.assert_allclose(found, scores[mask], rtol=1e-6)

    choice = Choice(dense, [0] * len(dense), [False] * len(dense), left=kept)
    again = look_again(choice, answer["importance"])
    assert again.fixed == [found is None for found in answer["importance"]]
    for mask, scores, found, new in zip(
        kept, dense, answer["importance"], again.importance, strict=True
    ):
        assert np.array_equal(new[mask], scores[mask] if found is None else found)
        assert (new[~mask] == new[mask].min()).all()


@pytest.mark.parametrize("sampling", ["near", "independent"])
def test_submodels_are_drawn_from_what_is_left(sampling: str) -> None:
    rng = np.random.default_rng(0)
    left = [rng.permutation(20) < 12, rng.permutation(4) < 3]
    importance = [rng.random(20), rng.random(4)]
    choice = Choice(importance, [6, 2], [False, True], sampling, left)
    best = choice.best()
    assert [int(m.sum()) for m in best] == [6, 2]
    draws = [choice.draw(0, number) for number in range(40)]
    assert len({kept[0].tobytes() for kept in draws}) > 10
    for kept in [best, *draws]:
        assert not (kept[0] & ~left[0]).any()
        assert np.array_equal(kept[1], best[1])
    whole = Choice([importance[0][left[0]]], [6], [False], sampling)
    assert all(
        np.array_equal(kept[0][left[0]], whole.draw(0, number)[0])
        for number, kept in enumerate(draws)
    )


def test_rounds_are_for_uniform_shapes() -> None:
    with pytest.raises(ValidationError, match=r"rounds lead to shape: uniform, got rounds: 2 with"):
        PruneOptions(sparsity=0.5, rounds=2, shape="padded")


def test_the_smaller_model_is_measured_repaired(
    make_llama: Callable[..., Path], text_file: Path
) -> None:
    bench = build_bench(
        Work(Path, str(make_llama()), str(text_file), list_options(sparsity={"ffn": 0.5}))
    )
    kept = [np.arange(g.num_units) < (g.num_units if g.kind != "ffn" else 40) for g in bench.groups]
    trial = Trial(kept, bench.shape.num_kept)
    repaired = json.loads(try_cut(bench, trial))
    bench.work.options["repair"] = False
    plain = json.loads(try_cut(bench, trial))
    assert repaired["nats_per_token"] < plain["nats_per_token"]
    assert repaired["utility"] == -repaired["nats_per_token"]
    assert torch.isfinite(torch.tensor(repaired["importance"][1])).all()
