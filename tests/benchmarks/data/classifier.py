"""The student that training data are judged by: logistic regression over a sentence's embedding.

Embeddings are those of MiniLM (the folder that $NIGHTPRESS_MINILM names; Reimers and Gurevych
2019, arXiv:1908.10084), frozen, the mean over tokens; without it, TF-IDF of the words.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from tests.benchmarks.data.labelled_tasks import Case

MAX_TOKENS = 64
BATCH = 32
EMBEDDED: dict[str, Any] = {}
"""Embeddings by text, of this process."""


def describe() -> str:
    if "NIGHTPRESS_MINILM" in os.environ:
        return f"logistic regression on MiniLM's embedding of the first {MAX_TOKENS} tokens"
    return "logistic regression on TF-IDF, for want of $NIGHTPRESS_MINILM"


def measure_accuracy(training: list[Case], test: list[Case]) -> float:
    """Return the share of test rows whose label a classifier of the training rows gives."""
    outputs = [case["output"] for case in training]
    if len(set(outputs)) == 1:
        return float(np.mean([case["output"] == outputs[0] for case in test]))
    known, asked = featurize([c["text"] for c in training], [c["text"] for c in test])
    student = LogisticRegression(max_iter=1000).fit(known, outputs)
    return float(np.mean(student.predict(asked) == np.array([case["output"] for case in test])))


def featurize(known: list[str], asked: list[str]) -> tuple[Any, Any]:
    """Return features [num_texts, num_features] of both lists of texts."""
    if "NIGHTPRESS_MINILM" in os.environ:
        embed([*known, *asked])
        return (np.stack([EMBEDDED[text] for text in texts]) for texts in (known, asked))
    vectorizer = TfidfVectorizer()
    return vectorizer.fit_transform(known), vectorizer.transform(asked)


@cache
def load_minilm() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    folder = Path(os.environ["NIGHTPRESS_MINILM"])
    model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.inference_mode()
def embed(texts: list[str]) -> None:
    """Add the embeddings, of length 1, of texts that have none yet; the short first."""
    model, tokenizer = load_minilm()
    new = sorted({text for text in texts if text not in EMBEDDED}, key=lambda t: (len(t), t))
    for start in range(0, len(new), BATCH):
        batch = new[start : start + BATCH]
        inputs = tokenizer(
            batch, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"
        )
        mask = inputs.attention_mask.unsqueeze(-1)
        states = model(**inputs).last_hidden_state
        mean = (states * mask).sum(1) / mask.sum(1)
        vectors = torch.nn.functional.normalize(mean).numpy()
        EMBEDDED.update(zip(batch, vectors, strict=True))
