"""The student is the incoming model with the linear layers of its blocks in low rank."""

from typing import Annotated, Literal

from pydantic import Field

from tasks.models.checkpoint import load_model
from tasks.models.factored import build_factored
from tasks.models.folder import load_config
from tasks.models.initializer_context import InitializerContext, Student
from tasks.models.low_rank import factor_blocks

NEEDS_DECODER = True


def initialize(
    context: InitializerContext,
    *,
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    keep: Literal["folded", "factored"] = "folded",
    num_windows: Annotated[int, Field(gt=0)] = 64,
) -> Student:
    """Split each weight by an SVD that weighs its inputs as the corpus has them.

    Args:
        sparsity: Fraction of each weight's parameters that its two factors do without.
        keep: `folded` multiplies the factors out again: stock code loads the student, and it is
            no smaller and, once trained, of full rank. `factored` keeps them: the student is
            smaller, and loads with the code that is written beside it.
        num_windows: Blocks of the corpus, the first ones, that the inputs are taken from.

    Raises:
        ValueError: the model has no linear layers in its blocks, or too small ones; or `factored`
            without trust_remote_code, or of a model that brings code of its own.

    Reference: Wang et al. 2024, SVD-LLM, arXiv 2403.07378.
    """
    folder, trusted = context.folder, context.trust_remote_code
    if keep == "factored" and (not trusted or "auto_map" in load_config(folder)):
        raise ValueError(
            "low_rank: keep: factored makes a model with code of its own, which expects a stock "
            "model and teacher.trust_remote_code: true; set it, or choose keep: folded"
        )
    ids = context.ids_BT[:num_windows].long()
    factors = factor_blocks(folder, ids, sparsity, trusted)
    model = load_model(folder, trust_remote_code=trusted, spread=False)
    facts: dict[str, str | int | float] = {
        "low_rank": "kept factored" if keep == "factored" else "folded: no smaller than before",
        "low_rank_missed": round(sum(f.missed for f in factors.values()) / len(factors), 6),
    }
    if keep == "factored":
        return Student(build_factored(model, factors), facts)
    for name, (wide, thin, _) in factors.items():
        model.get_parameter(name).data.copy_(wide @ thin)
    return Student(model, facts)
