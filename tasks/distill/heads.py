"""What a model makes of its inputs; a language model taken apart into its backbone, and the head
that makes logits of hidden states.

Shapes: B blocks of T tokens, N rows of logits, hidden size D, vocabulary or classes V.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from kernels.chunked_kd.naive import Head
from tasks.models.model_kind import AUTO_CLASSES, config_kind, head_kind

log = logging.getLogger(__name__)

PROBED_TOKENS = 8
ROUNDINGS = 16
"""How many roundings of their own type two ways to the same logits may lie apart."""


OFF = -1e4
"""Logit of a position that is padding: finite in every dtype, and of no probability."""


class Parts(NamedTuple):
    backbone: nn.Module
    linear: nn.Linear
    """The head's own module; its weight may be the embedding's."""
    scale: float
    softcap: float | None

    def head(self) -> Head:
        """Return the head as it is now: under ZeRO-3 its weight comes and goes."""
        return Head(self.linear.weight, self.linear.bias, self.scale, self.softcap)


def run(model: Any, inputs: Mapping[str, Any], outputs: Mapping[str, bool]) -> Any:
    """Run a model, or the backbone of one; a DistilBERT, which takes no token types, without them.

    Args:
        outputs: What it is to return besides, as `Objective.outputs` has it.
    """
    takes = inspect.signature(model.forward).parameters
    named = {n: v for n, v in inputs.items() if n != "token_type_ids" or n in takes}
    return model(**named, **outputs)


def logit_rows(output: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the logits of a forward pass as rows [N, V], each a distribution of its own.

    Of a language model the rows are its tokens, of a classifier its texts. Of question answering
    a text has two, over its positions: where the answer starts, and where it ends.
    """
    if "start_logits" in output:
        pairs_B2T = torch.stack([output.start_logits, output.end_logits], dim=1)
        padded_B1T = inputs["attention_mask"][:, None] == 0
        return pairs_B2T.masked_fill(padded_B1T, OFF).flatten(0, 1)
    logits: torch.Tensor = output.logits.flatten(0, -2)
    return logits


def check_heads(student: Any, teacher: Any) -> None:
    """Make sure that the logits of two models, given their configs, mean the same.

    Raises:
        ValueError: their heads are of different kinds, or have different labels.
    """
    kinds = config_kind(student), config_kind(teacher)
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"distill: expected a student with the teacher's head, {kinds[1]}, got {kinds[0]}; "
            f"save it with transformers' {AUTO_CLASSES[kinds[1]]} first"
        )
    if kinds[1] == "sequence_classification" and student.id2label != teacher.id2label:
        raise ValueError(
            f"distill: expected a student with the teacher's labels {teacher.id2label}, got "
            f"{student.id2label}; give it the same id2label, or leave out student"
        )


def take_apart(model: Any) -> Parts | None:
    """Return a causal language model's backbone and head; None where its logits are made otherwise,
    or it is none.

    Scale and softcap are read from the config, under the names that Cohere, Granite and Gemma 2
    give them, and whatever the family, the parts are tried on a few tokens against the model's own
    logits.
    """
    if head_kind(type(model).__name__) != "causal_lm":
        return None
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    if type(linear) is nn.Linear and model.base_model is not model:
        scale = number(config, "logit_scale", 1.0) / number(config, "logits_scaling", 1.0)
        softcap = number(config, "final_logit_softcapping", 0.0) or None
        parts = Parts(model.base_model, linear, scale, softcap)
        if gives_the_logits(parts, model):
            return parts
    log.warning(
        "%s: its head cannot be taken apart, so losses over logits hold whole logits in memory",
        type(model).__name__,
    )
    return None


def number(config: Any, name: str, absent: float) -> float:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else absent


@torch.no_grad()
def gives_the_logits(parts: Parts, model: Any) -> bool:
    """Whether backbone and head together make the logits that the model makes."""
    was_training = model.training
    model.eval()
    ids = torch.arange(PROBED_TOKENS, device=parts.linear.weight.device)[None]
    hidden_ND = parts.backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
    own_NV = model(input_ids=ids, use_cache=False).logits[0].float()
    model.train(was_training)
    if hidden_ND.shape[-1] != parts.linear.in_features:
        return False
    error = (head_logits(hidden_ND, parts.head()).float() - own_NV).abs().max()
    return bool(error <= ROUNDINGS * torch.finfo(hidden_ND.dtype).eps * own_NV.abs().max())


def head_logits(hidden_ND: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the logits of all tokens at once, [N, V]."""
    logits_NV = functional.linear(hidden_ND, head.weight, head.bias) * head.scale
    if head.softcap is None:
        return logits_NV
    return head.softcap * torch.tanh(logits_NV / head.softcap)


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else with its parameters for a while.

    It is still called as a module, so hooks that gather its parameters (ZeRO-3) run.
    """
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
