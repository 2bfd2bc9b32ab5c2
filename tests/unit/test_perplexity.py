import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from infra.local_executor import LocalExecutor
from infra.storage import localize, open_store
from tasks.corpus.text import tokenize_file
from tasks.evaluate.perplexity import cut_windows
from tasks.inputs import find_text
from tasks.models.checkpoint import describe_model, load_model
from tasks.quality_records import Metrics
from tasks.stage import Stage, run_stage


def measure(
    folder: Path, text: Path, tmp_path: Path, window: int, stride: int
) -> tuple[Metrics, Any]:
    store = open_store(f"file://{tmp_path}/store-{window}-{stride}")
    stage = Stage(
        "evaluate",
        "tasks.evaluate.evaluation:evaluate_model",
        {
            "window": window,
            "stride": stride,
            "tasks": [],
            "latency": None,
            "trust_remote_code": False,
        },
        {"model": describe_model(folder, str(folder)), "text": find_text("t", str(text), store)},
    )
    completion, _ = run_stage(
        stage, store, LocalExecutor(), lambda done, total: None, tmp_path / "scratch"
    )
    metrics = Metrics(**completion.record)
    return metrics, json.loads(localize(store, metrics.documents_uri).read_text())


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 300), st.integers(2, 40), st.integers(1, 40))
def test_windows_score_each_token_at_most_once(tokens: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    scored = []
    for w in cut_windows(tokens, window, stride):
        assert 0 <= w.start < w.score_from < w.stop <= tokens and w.stop - w.start <= window
        scored += range(w.score_from, w.stop)
    assert scored == sorted(set(scored))
    if stride < window:
        assert scored == list(range(1, tokens))
    else:
        assert scored == [t for t in range(tokens) if t % window]


def test_nats_are_those_of_a_plain_forward_pass(
    tiny_llama: Path, text_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    metrics, documents = measure(tiny_llama, text_file, tmp_path, 32, 32)
    ids = torch.tensor([i for d in tokenize_file(text_file, tokenizer) for i in d.ids])
    model = load_model(tiny_llama)
    total, count = 0.0, 0
    with torch.inference_mode():
        for window in ids.split(32):
            if len(window) > 1:
                logits = model(input_ids=window[None]).logits[0, :-1]
                total += float(F.cross_entropy(logits, window[1:], reduction="sum"))
                count += len(window) - 1
    assert metrics.num_tokens == count == sum(documents["tokens"])
    assert metrics.nats_per_token == pytest.approx(total / count, rel=1e-5)
    assert metrics.perplexity == pytest.approx(math.exp(metrics.nats_per_token))
    assert len(documents["nats"]) == metrics.num_documents == 40
    assert metrics.tokens_per_s > 0 and "windows of 32, stride 32" in metrics.protocol


def test_more_context_scores_more_tokens(tiny_llama: Path, text_file: Path, tmp_path: Path) -> None:
    side_by_side, _ = measure(tiny_llama, text_file, tmp_path, 32, 32)
    overlapping, _ = measure(tiny_llama, text_file, tmp_path, 32, 16)
    assert overlapping.num_tokens > side_by_side.num_tokens
