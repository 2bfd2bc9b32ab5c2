"""A recipe with a fine-tuned classifier as its teacher: from labelled rows to a pulled artifact
that plain transformers loads."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.integration.pipeline import Workplace
from tests.unit.encoder_factory import WORDS, make_encoder, make_tokenizer, save_encoder

pytestmark = pytest.mark.integration


def write_rows(path: Path, number: int, seed: int, labelled: bool = True) -> list[dict[str, Any]]:
    """Texts, good where the word `good` stands in them."""
    rng = random.Random(seed)
    rows = []
    for place in range(number):
        words = rng.choices(WORDS[3:], k=rng.randint(3, 9))
        words[rng.randrange(len(words))] = "good" if place % 2 else "bad"
        row: dict[str, Any] = {"text": " ".join(words)}
        rows.append(row | ({"label": ["NO", "YES"][place % 2]} if labelled else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def fine_tune(folder: Path, rows: list[dict[str, Any]]) -> None:
    tokenizer = make_tokenizer()
    model = make_encoder(id2label={0: "NO", 1: "YES"}, label2id={"NO": 0, "YES": 1})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        batch = random.Random(step).sample(rows, 16)
        inputs = tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")
        labels = torch.tensor([model.config.label2id[row["label"]] for row in batch])
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def accuracy(folder: Path, rows: list[dict[str, Any]]) -> float:
    """What a stranger would write."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.inference_mode():
        chosen = model(**inputs).logits.argmax(1).tolist()
    named = [model.config.id2label[number] for number in chosen]
    return sum(n == row["label"] for n, row in zip(named, rows, strict=True)) / len(rows)


def test_a_classifier_is_halved_published_and_pulled(tmp_path: Path) -> None:
    """Half of its rows have no label, and teach through the teacher alone."""
    rows = write_rows(tmp_path / "labelled.jsonl", 320, seed=0)
    write_rows(tmp_path / "plain.jsonl", 320, seed=1, labelled=False)
    held_out = write_rows(tmp_path / "dev.jsonl", 100, seed=2)
    fine_tune(tmp_path / "teacher", rows)
    recipe = {
        "name": "sentiment",
        "teacher": {"model": "./teacher"},
        "calibration": {"text": "labelled.jsonl"},
        "evaluation": {"text": "dev.jsonl", "window": 32},
        "corpus": {
            "sources": [
                {"name": "local_text", "options": {"path": "labelled.jsonl"}},
                {"name": "local_text", "options": {"path": "plain.jsonl"}},
            ],
            "filters": [],
            "block_tokens": 16,
        },
        "steps": [
            {
                "distill": {
                    "initializer": {"name": "first_layers"},
                    "losses": [
                        {"name": "forward_kl", "weight": 0.8},
                        {"name": "cross_entropy", "weight": 0.2},
                        {"name": "hidden_cosine", "weight": 0.1},
                        {"name": "attention_maps", "weight": 0.1},
                    ],
                    "num_tokens": 100 * 32 * 16,
                    "batch_blocks": 32,
                    "micro_batch_blocks": 16,
                    "learning_rate": 3.0e-3,
                }
            }
        ],
        "exports": [
            {"name": "full", "method": "none", "format": "safetensors", "dtype": "bfloat16"},
            {"name": "int8", "method": "absmax", "format": "nightpress", "options": {"bits": 8}},
        ],
        "gate": {"teacher": {"max_nats_increase": 1.0, "max_bytes_ratio": 1.0}},
        "cluster": {"ray": "local", "workers": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    place = Workplace(tmp_path / "place")
    record = place.run_json("run", tmp_path / "recipe.yaml")
    assert [export["outcome"] for export in record["exports"]] == ["published", "published"]
    models = {row["title"]: row for row in record["models"]}
    assert models["full"]["model"]["architecture"] == "BertForSequenceClassification"
    assert models["1 distill"]["model"]["facts"]["layer_map"] == "0:1"
    assert record["corpus"]["corpus"]["outputs"] == {"NO": 160, "YES": 160, "none": 320}
    place.run("pull", "sentiment/full", tmp_path / "pulled")
    assert accuracy(tmp_path / "pulled", held_out) > 0.95
    (card,) = [p.read_text() for p in place.store.rglob("README.md") if "full@" in p.read_text()]
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "text-classification" in card
    manifest = place.run_json("show", "sentiment/full")
    assert manifest["load_check"]["logit_error"] < 0.05
    assert place.run_json("run", tmp_path / "recipe.yaml")["status"] == "unchanged"


def test_what_a_classifier_cannot_do_is_said_before_anything_runs(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 20, seed=0)
    save_encoder(tmp_path / "teacher", "BertForSequenceClassification")
    recipe = {
        "name": "sentiment",
        "teacher": {"model": "./teacher"},
        "calibration": {"text": "rows.jsonl"},
        "evaluation": {"text": "rows.jsonl"},
        "corpus": {
            "sources": [{"name": "local_text", "options": {"path": "rows.jsonl"}}],
            "block_tokens": 16,
        },
        "steps": [{"prune": {"sparsity": {"ffn": 0.5}}}],
        "exports": [{"name": "full", "method": "none", "format": "safetensors"}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    place = Workplace(tmp_path / "place")
    process = place.start("run", tmp_path / "recipe.yaml")
    _, err = process.communicate(timeout=place.timeout_s)
    assert process.returncode == 2
    assert "prune measures units by the next token's loss" in err
    assert not (place.store / "stages").exists()
