"""Text that a model writes for a source: prompts in, completions out, a batch a unit of work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, count, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tasks.records import ModelRef

if TYPE_CHECKING:
    from tasks.corpus.context import CorpusContext

T = TypeVar("T")

GROUP_PROMPTS = 4096
"""Asked for together, where there are more of them."""
TEMPLATE_TOKENS = 64
"""What a chat template may add to a prompt, in the worst case that a budget reckons with."""


class Prompt(NamedTuple):
    """What a model is asked to go on from."""

    text: str
    seed: int
    """Decides what is sampled, whatever else is in the batch."""
    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    stop: tuple[str, ...] = ()
    """Texts at which the completion ends; they do not belong to it."""
    raw: bool = False
    """The beginning of a text, not a request: no chat template, also where there is one."""
    num_beams: int = 1
    """Over 1, a beam search for a likely completion; temperature and seed play no part then."""

    @property
    def digest(self) -> str:
        """sha256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def most_tokens(self) -> int:
        """What asking can cost at the most: no tokenizer makes more tokens than there are bytes."""
        return len(self.text.encode()) + TEMPLATE_TOKENS + self.max_tokens


class Completion(NamedTuple):
    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    finished: bool
    """Whether it ended by itself or at a stop, not at max_tokens."""
    refused: str | None = None
    """Why there is no text; the other fields then say what was spent all the same."""


class Generator(NamedTuple):
    """Who writes. Both functions travel to workers by pickle."""

    name: str
    """Of the model, as rows name it."""
    state: Callable[[], Any]
    """Built once a worker."""
    write: Callable[[Any, list[Prompt]], list[Completion]]
    batch_prompts: int
    """Prompts of one unit of work; a kill costs at most one unit for each process killed."""
    token_budget: int | None = None
    """Most tokens, prompts' and completions', that one source or labeller may spend."""
    beams: bool = False
    """Whether it can search with beams."""


def generate(context: CorpusContext, prompts: list[Prompt], group: str) -> list[Completion]:
    """Complete each prompt, once and for all; what it took is added to `context.spent`.

    Which prompts a budget still allows is reckoned before the first is asked: by what the source
    has spent so far, and by the most that each prompt can cost. So no budget is overdrawn, and
    the same answers always lead to the same rows.

    Args:
        group: Tells the prompts of a source's rounds apart.

    Raises:
        ValueError: beams are asked for, and the generator has none.
    """
    generator = context.generator
    assert generator is not None, f"{context.name} does not say that it uses the generator"
    if not generator.beams and any(prompt.num_beams > 1 for prompt in prompts):
        raise ValueError(
            f"{context.name}: decoding: beam needs the generator teacher, got another; choose "
            "greedy or sampled"
        )
    asked = prompts[: count_affordable(context, prompts)]
    step = generator.batch_prompts
    units = [asked[start : start + step] for start in range(0, len(asked), step)]
    results = context.space.compute_units(
        partial(write_unit, generator.write), units, generator.state, f"{context.name}-{group}"
    )
    completions = [Completion(*fields) for data in results for fields in json.loads(data)]
    context.spent["requests"] += len(completions)
    context.spent["prompt_tokens"] += sum(c.num_prompt_tokens for c in completions)
    context.spent["completion_tokens"] += sum(c.num_completion_tokens for c in completions)
    past = Completion("", 0, 0, False, f"past the budget of {generator.token_budget} tokens")
    completions += [past] * (len(prompts) - len(asked))
    context.refused.update(c.refused for c in completions if c.refused)
    return completions


def complete_each(
    context: CorpusContext, asked: Iterator[tuple[T, Prompt]]
) -> Iterator[tuple[T, Prompt, Completion]]:
    """Yield each item with its prompt and what completes it; those without text are left out.

    `GROUP_PROMPTS` of them are in memory at a time.
    """
    for number in count():
        group = list(islice(asked, GROUP_PROMPTS))
        if not group:
            return
        completions = generate(context, [prompt for _, prompt in group], f"{number:04d}")
        for (item, prompt), completion in zip(group, completions, strict=True):
            if not completion.refused:
                yield item, prompt, completion


def count_affordable(context: CorpusContext, prompts: list[Prompt]) -> int:
    """Return how many of the prompts, from the first, the budget allows in the worst case."""
    assert context.generator is not None
    budget = context.generator.token_budget
    if budget is None:
        return len(prompts)
    left = budget - context.spent["prompt_tokens"] - context.spent["completion_tokens"]
    return sum(total <= left for total in accumulate(prompt.most_tokens for prompt in prompts))


def write_unit(
    write: Callable[[Any, list[Prompt]], list[Completion]], state: Any, prompts: list[Prompt]
) -> bytes:
    return json.dumps(write(state, prompts)).encode()


def as_turn(text: str) -> str:
    """Return a prompt as a chat's user says it: the turn that follows is the output."""
    return text.removesuffix("\nOutput:")


def cut_at_stop(text: str, stops: tuple[str, ...]) -> str:
    """Return what comes before the first of the stops."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def name_model(model: ModelRef) -> str:
    return f"{model.architecture} {model.digest[:12]}"


def provenance(context: CorpusContext, prompt: Prompt, licence: str | None) -> dict[str, Any]:
    """Return what a row says of where it came from."""
    assert context.generator is not None
    return {
        "generator": context.generator.name,
        "prompt_digest": prompt.digest,
        "seed": prompt.seed,
        "licence": licence,
    }
