"""The recipe's prune step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.recipe_parts import Config, Count, Fraction, Plugin

Kind = Literal["kv_groups", "ffn", "experts", "hidden", "layers"]

BUDGETS = ("num_parameters", "bytes", "latency_ms")


class Sparsity(Config):
    """Fraction removed of the incoming model, per kind of unit."""

    ffn: Fraction = 0.0
    kv_groups: Fraction = 0.0
    experts: Fraction = 0.0
    """Of every layer's experts; at least as many stay as a token is sent to."""
    hidden: Fraction = 0.0
    """Of the dimensions of the residual stream, the same ones in the whole network."""
    layers: Fraction = 0.0
    """Of the layers, rounded to whole ones."""
    sublayers: Fraction = 0.0
    """Of all attention and feed-forward sublayers, rounded to whole ones; alone in its step."""


class Budget(Config):
    """What the smaller model may cost, exactly one of three; measured sensitivities then decide
    how much of each kind of unit stays."""

    num_parameters: Count | None = None
    """Tied parameters counted once."""
    bytes: Count | None = None
    """At 4 bytes per parameter, tied ones once, as the teacher's size is counted."""
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Median time of one forward pass in float32 on a worker."""
    batch: Count = 1
    """Sequences in the timed forward pass."""
    tokens: Count = 128
    """Tokens in each of them."""
    kinds: list[Kind] | None = None
    """Kinds of unit that may be cut; all that the architecture can give up when left out."""

    @model_validator(mode="after")
    def check_one(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"budget: expected exactly one of {', '.join(BUDGETS)}, "
                f"got {' and '.join(given) or 'none'}; remove the others"
            )
        return self


class PruneOptions(Config):
    method: Literal["perturbation", "criterion"] = "perturbation"
    """`perturbation` learns each unit's importance from masked forward passes, with the criterion
    as its prior; `criterion` trusts the criterion alone."""
    criterion: Plugin = Plugin(name="reconstruction")
    sparsity: Fraction | Sparsity | None = None
    """One fraction of all attention and FFN parameters, or one per kind."""
    budget: Budget | None = None
    """In place of `sparsity`."""
    shape: Literal["uniform", "padded", "per_layer"] = "uniform"
    """`uniform` cuts the same width from every layer: a stock architecture. `padded` gives each
    sublayer the width that it needs, out of the same total, and fills up with zeros to the widest
    one's: stock code loads it, but it saves less. `per_layer` saves those widths as they are, with
    the modelling file that they need: only `trust_remote_code` loads it."""
    rounds: Count = 1
    """Rounds in which the shape is reached. After each one the criterion, and the sweep if there is
    one, look again at what is left, repaired; what has been cut stays cut."""
    num_submodels: Annotated[int, Field(gt=1, multiple_of=2)] = 64
    """Sub-models drawn in every round, each together with its complement."""
    sampling: Literal["near", "independent"] = "near"
    """`near` draws sub-models of the final shape near the criterion's choice, to correct it;
    `independent` keeps each unit by itself with the density as its probability, to learn what all
    units contribute."""
    utility: str = "loss"
    """What a sub-model is worth: `loss` (negative, in nats/token), `kl` (negative KL(dense ||
    sub-model)), or a function of your own as `package.module:function`, which must import here and
    on every worker: called with a sub-model's logits [windows, tokens, vocabulary] and the token
    ids [windows, tokens], and, if it takes a third argument, the dense model's logits; returns a
    number, the higher the better. It need not be differentiable."""
    windows_per_submodel: Count = 8
    """Calibration windows on which each sub-model is scored. Each unit of work has a shard of its
    own: no window scores a second unit before the calibration text is used up. Sub-models are
    repaired on other windows than they are scored on."""
    submodels_per_unit: Annotated[int, Field(gt=1, multiple_of=2)] = 8
    """Sub-models in one unit of work, the least that a killed worker repeats."""
    repair: bool = True
    """Refit what is left of every sublayer to the dense model by ridge least squares on the
    calibration text; sub-models are then scored repaired, too."""
    refine: Annotated[int, Field(ge=0)] = 3
    """Levenberg-Marquardt steps by which the final cut's feed-forward sublayers are fitted as a
    whole after that; the last one also to the dense model's next-token distribution."""
    allow_rounding: bool = False
    """Accept an aligned shape that differs by more than 0.05 from the sparsity asked for."""

    @model_validator(mode="after")
    def check_amount(self) -> Self:
        if (self.sparsity is None) == (self.budget is None):
            raise ValueError(
                "prune: expected exactly one of sparsity and budget, got "
                f"{'none' if self.budget is None else 'both'}; say how much to cut once, such as "
                "sparsity: 0.5 or budget: {num_parameters: 800_000}"
            )
        layers = self.sparsity.layers if isinstance(self.sparsity, Sparsity) else 0
        if layers and self.shape != "uniform":
            raise ValueError(
                f"prune: shape: {self.shape} gives widths to layers that stay, got layers: "
                f"{layers:g} to cut as well; cut layers in a prune step before this one"
            )
        off = self.sparsity.sublayers if isinstance(self.sparsity, Sparsity) else 0
        if off and self.shape == "uniform":
            raise ValueError(
                "prune: shape: uniform cannot do without sublayers, since a stock layer has both; "
                "say shape: per_layer (absent, needs trust_remote_code) or padded (zeros, which "
                "save nothing), or cut layers"
            )
        if off and self.sparsity != Sparsity(sublayers=off):
            raise ValueError(
                f"prune: sublayers are cut alone, got {self.sparsity!r}; cut the other kinds in a "
                "prune step before this one"
            )
        if self.rounds > 1 and self.shape != "uniform":
            raise ValueError(
                f"prune: rounds lead to shape: uniform, got rounds: {self.rounds} with "
                f"{self.shape}; leave rounds out, or cut to a uniform shape in a step before"
            )
        if self.budget and self.shape != "uniform":
            raise ValueError(
                f"prune: a budget is kept by shape: uniform, got {self.shape}; "
                "give a sparsity instead"
            )
        return self
