"""The recipe's own teacher writes, through transformers, in batches over the workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.decoding import Writer, sample, search
from tasks.corpus.generation import Completion, Generator, Prompt, as_turn, cut_at_stop, name_model
from tasks.corpus.text import bos_id
from tasks.models.checkpoint import load_model, load_tokenizer

USES = ("teacher",)
EXECUTION = ()
"""Options that change nothing about what is written; they do not enter the key."""


def connect(
    context: CorpusContext, *, batch_prompts: Annotated[int, Field(gt=0)] = 16
) -> Generator:
    """Let the teacher complete prompts; one with a chat template is asked as its user."""
    teacher = context.teacher
    assert teacher is not None
    return Generator(
        name=name_model(teacher),
        state=partial(load_writer, context.space.localizer, teacher.uri, context.trust_remote_code),
        write=write,
        batch_prompts=batch_prompts,
        beams=True,
    )


def load_writer(
    localize: Callable[[str], Path],
    teacher_uri: str,
    trust_remote_code: bool,
    dtype: str = "float32",
) -> Writer:
    folder = localize(teacher_uri)
    model = load_model(folder, dtype, trust_remote_code)
    tokenizer = load_tokenizer(folder)
    said = model.generation_config.eos_token_id if model.generation_config else None
    ends = {bos_id(tokenizer), tokenizer.eos_token_id}
    ends |= set(said) if isinstance(said, list) else {said}
    return Writer(model, tokenizer, sorted(end for end in ends if end is not None))


def write(writer: Writer, prompts: list[Prompt]) -> list[Completion]:
    """Complete a batch; a prompt that leaves no room for max_tokens is refused."""
    encoded = [encode_prompt(writer.tokenizer, prompt) for prompt in prompts]
    context = getattr(writer.model.config.get_text_config(), "max_position_embeddings", None)
    batch = [
        (ids, prompt, context is None or len(ids) + prompt.max_tokens <= context)
        for ids, prompt in zip(encoded, prompts, strict=True)
    ]
    sampled = iter(
        sample(writer, [(ids, p) for ids, p, fits in batch if fits and p.num_beams == 1])
    )
    completions = []
    for ids, prompt, fits in batch:
        if not fits:
            reason = f"prompt and max_tokens exceed the model's context of {context}"
            completions.append(Completion("", 0, 0, False, reason))
            continue
        after = next(sampled) if prompt.num_beams == 1 else search(writer, ids, prompt)
        text = decode_after(writer.tokenizer, ids, after.ids)
        cut = cut_at_stop(text, prompt.stop)
        completions.append(Completion(cut, len(ids), len(after.ids), after.finished or cut != text))
    return completions


def decode_after(tokenizer: Any, before: list[int], after: list[int]) -> str:
    """Return the text of what follows; decoded alone it may lose the space that it begins with."""
    known: str = tokenizer.decode(before, skip_special_tokens=True)
    whole: str = tokenizer.decode(before + after, skip_special_tokens=True)
    return whole[len(known) :]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    if tokenizer.chat_template and not prompt.raw:
        asked = [{"role": "user", "content": as_turn(prompt.text)}]
        rendered = tokenizer.apply_chat_template(
            asked, tokenize=True, add_generation_prompt=True, return_dict=True
        )
        return list(rendered["input_ids"])
    ids = tokenizer(prompt.text, add_special_tokens=False, verbose=False).input_ids
    begin = bos_id(tokenizer)
    return ids if begin is None else [begin, *ids]
