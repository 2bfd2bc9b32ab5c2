"""A look into a model for the report: its components, and samples of what it writes."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.digests import digest_folder
from tasks.evaluate.sampled import Samples
from tasks.evaluate.samples import (
    NEW_TOKENS,
    NUM_PLACES,
    NUM_PROMPTS,
    PROMPT_TOKENS,
    Sampler,
    build_sampler,
    rank_next,
    write_on,
)
from tasks.models.components import count_components
from tasks.models.model_kind import head_kind
from tasks.records import DataRef, ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


def inspect_model(
    space: StageSpace, options: dict[str, Any], *, model: ModelRef, text: TextRef
) -> DataRef:
    """Look into a model.

    Writes `components.json`, a list of `Component` or null, and of a causal language model
    `samples.json`, as `Samples` says.

    Raises:
        CorpusError: the text has no rows, or messages that the tokenizer has no template for.
    """
    components = count_components(space.local(model.uri), options["window"])
    listed = None if components is None else [part.model_dump() for part in components]
    (space.out / "components.json").write_text(json.dumps(listed))
    if head_kind(model.architecture) == "causal_lm":
        samples = take_samples(space, options, model, text)
        (space.out / "samples.json").write_text(samples.model_dump_json())
    return DataRef(uri=space.output_uri(), digest=digest_folder(space.out))


def take_samples(
    space: StageSpace, options: dict[str, Any], model: ModelRef, text: TextRef
) -> Samples:
    """Let one worker write on; a worker is not worth loading the model for a second time."""
    state = partial(
        build_sampler,
        space.localizer,
        model.uri,
        text.uri,
        options["window"],
        options["seed"],
        options["trust_remote_code"],
    )
    sampled = partial(sample_all, options["temperatures"])
    (found,) = space.compute_units(sampled, [0], state, group="samples", num_workers=1)
    return Samples.model_validate_json(found)


def sample_all(temperatures: list[float], sampler: Sampler, unit: int) -> bytes:
    """Return JSON of `Samples`."""
    model = sampler.writer.model
    samples = Samples(
        protocol=(
            f"greedy, at most {NEW_TOKENS} tokens after the first {PROMPT_TOKENS} of {NUM_PROMPTS} "
            f"held-out documents, and one place in each of {NUM_PLACES}, chosen by the seed; "
            f"{str(model.dtype).removeprefix('torch.')} on {model.device.type}"
        ),
        temperatures=temperatures,
        continuations=[write_on(sampler.writer, ids) for ids in sampler.prompts],
        next_tokens=[rank_next(sampler.writer, at, temperatures) for at in sampler.places],
    )
    return samples.model_dump_json().encode()
