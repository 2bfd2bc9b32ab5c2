"""QLoRA on a GPU: the frozen weights are bitsandbytes' NF4, and merging gives a stock model."""

from pathlib import Path

import pytest
import torch

from tasks.distill.adapters import make_trainable, merge
from tasks.models.checkpoint import load_model
from tasks.trainable import Adapters

bnb = pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def test_qlora_trains_over_bitsandbytes(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, spread=False)
    make_trainable(model, Adapters(kind="qlora", rank=4).model_dump(), seed=0)
    assert sum(isinstance(m, bnb.nn.Linear4bit) for m in model.modules()) == 2 * 7
    ids = torch.arange(24, device="cuda").view(2, 12)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    merged = merge(model, lambda: load_model(tiny_llama, spread=False))
    dense = load_model(tiny_llama, spread=False)
    assert merged.state_dict().keys() == dense.state_dict().keys()
    assert float(merged(input_ids=ids, labels=ids).loss) < losses[0]
