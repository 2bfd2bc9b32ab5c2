"""A server with OpenAI's HTTP interface writes: vLLM, SGLang, llama.cpp or a provider.

Its base URL and key come from NIGHTPRESS_ENDPOINT and NIGHTPRESS_ENDPOINT_KEY, read by the worker
that asks, on its own machine; neither enters a key, a row or a message. What a server answers
is stored at once, so an interrupted run keeps its answers; but another server, or another version,
may answer the same prompt and seed with another text.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from infra.completion_endpoint import CompletionEndpoint, EndpointError, Pace, RefusedError
from infra.settings import read_settings
from tasks.corpus.context import CorpusContext
from tasks.corpus.generation import Completion, Generator, Prompt, as_turn, cut_at_stop
from tasks.errors import ClusterError

USES = ()
EXECUTION = ("concurrent_requests", "max_requests_per_minute", "timeout_s", "retries")
"""Options that change nothing about what is written; they do not enter the key, so a run that met
a slow server goes on where it was with more patience."""

MIN_SECRET_CHARACTERS = 16
"""Shorter keys are taken for the words that servers without keys are given, such as EMPTY."""


class Asker(NamedTuple):
    """A worker's state."""

    endpoint: CompletionEndpoint
    model: str
    chat: bool
    concurrent_requests: int


def connect(
    context: CorpusContext,
    *,
    model: str,
    chat: bool = True,
    concurrent_requests: Annotated[int, Field(gt=0)] = 8,
    max_requests_per_minute: Annotated[float, Field(gt=0)] | None = None,
    token_budget: Annotated[int, Field(gt=0)] | None = None,
    timeout_s: Annotated[float, Field(gt=0)] = 120.0,
    retries: Annotated[int, Field(ge=0)] = 5,
    batch_prompts: Annotated[int, Field(gt=0)] = 32,
) -> Generator:
    """Let a server complete prompts.

    Args:
        model: As the server names it.
        chat: Ask at /chat/completions; text to go on from goes to /completions in any case.
        concurrent_requests: Of each worker.
        max_requests_per_minute: Of all workers together.
        token_budget: For each source or labeller, reckoned before asking: `generation.generate`.
            Attempts that got no answer are not in it.
        timeout_s: For one attempt.
    """
    workers = context.space.executor.num_workers
    interval_s = 60.0 * workers / max_requests_per_minute if max_requests_per_minute else 0.0
    return Generator(
        name=model,
        state=partial(open_asker, model, chat, concurrent_requests, interval_s, timeout_s, retries),
        write=write,
        batch_prompts=batch_prompts,
        token_budget=token_budget,
    )


def open_asker(
    model: str,
    chat: bool,
    concurrent_requests: int,
    interval_s: float,
    timeout_s: float,
    retries: int,
) -> Asker:
    settings = read_settings()
    url = settings.endpoint_url()
    if not url:
        raise ValueError(
            "the generator endpoint has no server: set NIGHTPRESS_ENDPOINT to its base URL, such "
            "as http://host:8000/v1, in the environment of the workers"
        )
    key = settings.endpoint_key()
    endpoint = CompletionEndpoint(url, key, timeout_s, retries, Pace(interval_s))
    return Asker(endpoint, model, chat, concurrent_requests)


def write(asker: Asker, prompts: list[Prompt]) -> list[Completion]:
    with ThreadPoolExecutor(asker.concurrent_requests) as pool:
        return list(pool.map(partial(complete, asker), prompts))


def complete(asker: Asker, prompt: Prompt) -> Completion:
    """Ask for one prompt.

    Raises:
        ClusterError: the server does not answer.
        ValueError: it does not accept the key, or has no such model.
    """
    chat = asker.chat and not prompt.raw
    request: dict[str, Any] = {
        "model": asker.model,
        "max_tokens": prompt.max_tokens,
        "temperature": prompt.temperature,
        "seed": prompt.seed % 2**31,  # what every server can hold
    }
    if prompt.stop:
        request["stop"] = list(prompt.stop)
    if chat:
        request["messages"] = [{"role": "user", "content": as_turn(prompt.text)}]
    else:
        request["prompt"] = prompt.text
    try:
        data = asker.endpoint.post("/chat/completions" if chat else "/completions", request)
    except RefusedError as error:
        return Completion("", 0, 0, False, str(error))
    except EndpointError as error:
        raise ClusterError(str(error), error.remedy) from None
    key = asker.endpoint.key or ""
    if len(key) >= MIN_SECRET_CHARACTERS and key in data.decode(errors="replace"):
        return malformed(prompt, {}, "it repeats the key")
    return read_answer(data, prompt, chat)


def read_answer(data: bytes, prompt: Prompt, chat: bool) -> Completion:
    """Return what an answer says; one without a text is refused."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return malformed(prompt, {}, "not JSON")
    if not isinstance(answer, dict):
        return malformed(prompt, {}, "no JSON object")
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        return malformed(prompt, answer, "no choices")
    choice = choices[0]
    message = choice.get("message") if chat else choice
    text = message.get("content" if chat else "text") if isinstance(message, dict) else None
    if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
        return malformed(prompt, answer, "no text")
    if choice.get("finish_reason") == "content_filter":
        return Completion("", *count_tokens(answer, prompt), False, "held back by the endpoint")
    cut = cut_at_stop(text, prompt.stop)
    finished = choice.get("finish_reason") != "length" or cut != text
    return Completion(cut, *count_tokens(answer, prompt), finished)


def malformed(prompt: Prompt, answer: dict[str, Any], what: str) -> Completion:
    return Completion("", *count_tokens(answer, prompt), False, f"malformed answer: {what}")


def count_tokens(answer: dict[str, Any], prompt: Prompt) -> tuple[int, int]:
    """Return the prompt's and the completion's tokens; the most they can be if nothing is said."""
    usage = answer.get("usage")
    said = usage if isinstance(usage, dict) else {}
    most = {
        "prompt_tokens": prompt.most_tokens - prompt.max_tokens,
        "completion_tokens": prompt.max_tokens,
    }
    first, second = (
        said[name] if isinstance(said.get(name), int) and said[name] >= 0 else limit
        for name, limit in most.items()
    )
    return first, second
