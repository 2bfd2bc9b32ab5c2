"""A tokenizer in GGUF's words: byte-level BPE, or SentencePiece's BPE with bytes below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from tasks.models.checkpoint import load_tokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (WORDS % r"\p{N}",): "qwen2",
    (WORDS % r"\p{N}{1,3}",): "llama-bpe",
}
"""How text is cut before merging -> the name that llama.cpp has for it."""


def read_tokenizer(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the tokenizer that transformers makes, and its parts in the form of tokenizer.json.

    The file itself is no witness: for some architectures transformers takes the vocabulary from it
    and its own way to cut text.

    Raises:
        ValueError: there is none, or llama.cpp would cut text in another way.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"format gguf: expected a tokenizer.json in {folder}, as llama.cpp needs one"
        )
    tokenizer = load_tokenizer(folder)
    about: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if about["model"]["type"] != "BPE":
        raise ValueError(
            f"format gguf: expected a BPE tokenizer, got {about['model']['type']}; "
            "use format compressed-tensors"
        )
    if not is_sentencepiece(about):
        name_split(about)
    return tokenizer, about


def is_sentencepiece(about: dict[str, Any]) -> bool:
    """Whether spaces become ▁ and unknown characters bytes."""
    return bool(about["model"]["byte_fallback"])


def name_split(about: dict[str, Any]) -> str:
    """Return llama.cpp's name of a byte-level tokenizer's way to cut text.

    Raises:
        ValueError: it has none.
    """
    cutter = about["pre_tokenizer"] or {"type": None}
    parts = cutter["pretokenizers"] if cutter["type"] == "Sequence" else [cutter]
    key = tuple(
        part["pattern"]["Regex"] if part["type"] == "Split" else part["type"]
        for part in parts
        if part["type"] != "ByteLevel" or part["use_regex"]
    )
    found = SPLITS.get(key)
    is_known = (
        found is not None
        and any(part["type"] == "ByteLevel" and not part["add_prefix_space"] for part in parts)
        and (about["normalizer"] or {"type": "NFC"})["type"] == "NFC"
        and bool(about["model"].get("ignore_merges")) == (found == "llama-bpe")
    )
    if not is_known:
        raise ValueError(
            f"format gguf: llama.cpp has no name for how this tokenizer cuts text, {key}; those of "
            f"{sorted(SPLITS.values())} are known; use format compressed-tensors"
        )
    assert found
    return found


def add_tokenizer(writer: GGUFWriter, folder: Path, num_rows: int) -> None:
    """Write the vocabulary, and how text becomes tokens.

    Args:
        num_rows: Rows of the embedding; those without a token are marked as unused.

    Raises:
        ValueError: there are more tokens than rows.
    """
    tokenizer, about = read_tokenizer(folder)
    if len(tokenizer) > num_rows:
        raise ValueError(
            f"format gguf: expected at most {num_rows} tokens, as the model embeds so many, got a "
            f"tokenizer with {len(tokenizer)}; transformers may have added some"
        )
    model = about["model"]
    tokens = [f"[unused{index}]" for index in range(num_rows)]
    types = [TokenType.UNUSED] * num_rows
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, TokenType.NORMAL
        if is_sentencepiece(about) and len(token) == 6 and token.startswith("<0x"):
            types[index] = TokenType.BYTE
    for entry in about["added_tokens"]:
        index = entry["id"]
        tokens[index] = entry["content"]
        types[index] = TokenType.CONTROL if entry["special"] else TokenType.USER_DEFINED
    if is_sentencepiece(about):
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = TokenType.UNKNOWN
            writer.add_unk_token_id(tokenizer.unk_token_id)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(token_scores(model, tokens))
        writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith("▁"))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name_split(about))
        writer.add_token_merges([as_pair(merge) for merge in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for add, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add(index)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def token_scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """Return a score per token; the pair is merged first whose result has the highest.

    The first merge that makes a token has rank r: its score is -r. What no merge makes comes last.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault(as_pair(merge).replace(" ", "", 1), rank)
    return [-float(ranks.get(token, len(model["merges"]))) for token in tokens]


def as_pair(merge: str | list[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)
