"""Tiny random encoders with a head, and a tokenizer of whole words."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "good bad film plot who wrote it the a of is was not very 0 1 2 3 4 5".split()
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL |= {"mask_token": "[MASK]", "unk_token": "[UNK]"}
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 34,
    "pad_token_id": 0,
}
DISTILBERT = {"hidden_dim": 24}


def make_tokenizer() -> Any:
    tokens = [*SPECIAL.values(), *WORDS]
    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=32, model_input_names=inputs, **SPECIAL
    )


def make_encoder(architecture: str = "BertForSequenceClassification", **overrides: Any) -> Any:
    """Return a random model without dropout, in evaluation mode.

    Args:
        overrides: Of its config; and `seed`, of its weights.
    """
    torch.manual_seed(overrides.pop("seed", 0))
    family = getattr(transformers, architecture)
    sizes = SIZES | (DISTILBERT if architecture.startswith("DistilBert") else {})
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    off |= dict.fromkeys(("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"), 0.0)
    known = family.config_class()
    settings = {k: v for k, v in (sizes | off | overrides).items() if hasattr(known, k)}
    model = family(family.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    return model.eval()


def save_encoder(folder: Path, architecture: str, **overrides: Any) -> Path:
    make_encoder(architecture, **overrides).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
