"""A small generator that knows a task from a few hundred rows: a causal model fine-tuned on them.

It learns to go on from the product's own prompts without examples: to write an input for a label,
to write one for none, and to answer. All cases of a step share one prompt, which is computed once;
only what follows it is learned.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tasks.corpus.generation import Prompt
from tasks.corpus.generators.teacher import encode_prompt
from tasks.corpus.prompts import BORDER, Input, ask_input, ask_input_for, ask_output
from tasks.corpus.task_text import render_prompt
from tasks.corpus_options import Task
from tasks.models.checkpoint import load_model, load_tokenizer, save_model
from tests.benchmarks.data.labelled_tasks import Trial

STEPS = {"full": 160, "smoke": 4}
MAX_TOKENS = 96
"""Learned of a case."""
LEARNING_RATE = 2e-3
IGNORED = -100


def teach_writer(trial: Trial, base: Path, scale_name: str) -> Path:
    """Return the folder of the base fine-tuned on the trial's gold rows."""
    folder = trial.folder / "writer"
    if (folder / "config.json").is_file():
        return folder
    model, tokenizer = load_model(base, "float32"), load_tokenizer(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    steps = STEPS[scale_name]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = random.Random(trial.seed)
    for step in range(steps):
        prompt, answers = compose(trial, step, rng)
        measure_loss(model, tokenizer, prompt, answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    unfinished = folder.with_suffix(".tmp")
    save_model(model, base, unfinished)
    unfinished.replace(folder)
    return folder


def compose(trial: Trial, step: int, rng: random.Random) -> tuple[str, list[str]]:
    """Return one prompt, and what follows it in each case: every second step begins with a label,
    and the others take turns."""
    labels = trial.task.labels
    task = Task(instruction=trial.task.instruction, kind="classification", labels=labels)
    if step % 2 == 0:
        label = labels[step // 2 % len(labels)]
        cases = rng.sample(trial.first(label, len(trial.gold)), trial.task.cases_per_step)
        return ask_input_for(task, [], label), [f" {case['text']}{BORDER}" for case in cases]
    cases = rng.sample(trial.gold, trial.task.cases_per_step)
    if step % 4 == 1:
        return ask_input(task, []), [f" {case['text']}{BORDER}" for case in cases]
    solved = [f" {case['text']}\nOutput: {case['output']}{BORDER}" for case in cases]
    asks = ask_output(task, [], Input("", None)) if step % 8 == 3 else render_prompt(task, "")
    return asks.removesuffix(" \nOutput:"), solved


def measure_loss(model: Any, tokenizer: Any, prompt: str, answers: list[str]) -> torch.Tensor:
    """Return the mean nats/token of the answers to one prompt."""
    before = encode_prompt(tokenizer, Prompt(prompt, seed=0, max_tokens=MAX_TOKENS))
    after = [
        tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:MAX_TOKENS]
        for text in answers
    ]
    width = max(map(len, after))
    ids = torch.tensor([each + [0] * (width - len(each)) for each in after])
    learned = torch.tensor([each + [IGNORED] * (width - len(each)) for each in after])
    known = model(input_ids=torch.tensor([before]), use_cache=True)
    cache = known.past_key_values
    cache.batch_repeat_interleave(len(after))
    logits = model(input_ids=ids, past_key_values=cache).logits
    first = known.logits[:, -1:].expand(len(after), -1, -1)
    logits = torch.cat([first, logits[:, :-1]], dim=1)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), learned.flatten(), ignore_index=IGNORED
    )
