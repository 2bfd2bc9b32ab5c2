"""Which class of transformers a config stands for, and how to make a model of it."""

from __future__ import annotations

from typing import Any

import torch


def make_model(config: Any, trust_remote_code: bool = False) -> Any:
    """Make an untrained model of the class that the config names under `architectures`.

    Without the name of a class for such configs it is a masked language model for an encoder, else
    a causal one.
    """
    import transformers
    from transformers import (
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        PreTrainedModel,
    )

    named: Any = getattr(transformers, (config.architectures or [""])[0], None)
    is_class = isinstance(named, type) and issubclass(named, PreTrainedModel)
    if is_class and named.config_class is type(config):
        return named(config)
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    auto = (
        AutoModelForMaskedLM
        if is_encoder and not getattr(config, "is_decoder", False)
        else AutoModelForCausalLM
    )
    model: Any = auto
    return model.from_config(config, trust_remote_code=trust_remote_code)


def empty_model(config: Any, trust_remote_code: bool = False) -> Any:
    """Make a model without storage."""
    with torch.device("meta"):
        return make_model(config, trust_remote_code)


def name_class(model: Any) -> Any:
    """Return a copy of a model's config that names the model's class."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    return config
