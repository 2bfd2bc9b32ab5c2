"""Which parameters of a student are trained: all, the last layers, or adapters beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tasks.recipe_parts import Config, Count


class Full(Config):
    kind: Literal["full"] = "full"


class TopLayers(Config):
    kind: Literal["top_layers"]
    num_layers: Count = 2
    """The last blocks, this many; with them the final norm and a head of its own."""


class Adapters(Config):
    """Low-rank adapters, merged into the weights when the student is saved."""

    kind: Literal["lora", "qlora"]
    """`qlora` holds the frozen weights in NF4 meanwhile, by bitsandbytes on GPUs."""
    rank: Count = 8
    """r: an adapter of a layer [out, in] has r (in + out) parameters."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """What an adapter adds is multiplied by alpha / rank."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the linear layers that get one, such as `q_proj`; all those of the blocks when
    left out."""


def name_kind(given: Any) -> Any:
    """Let `trainable: lora` stand for a mapping of the kind alone."""
    return {"kind": given} if isinstance(given, str) else given


Trainable = Annotated[
    Full | TopLayers | Adapters, Field(discriminator="kind"), BeforeValidator(name_kind)
]
