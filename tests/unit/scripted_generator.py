"""A generator that follows a script, for tests of what sources make of completions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.corpus.context import CorpusContext
from tasks.corpus.generation import Completion, Generator, Prompt
from tasks.corpus_options import Task
from tasks.stage_space import Executor
from tests.unit.stage_space import make_space

FILMS = Task(
    instruction="Say whether a film is good.",
    kind="classification",
    labels=["bad", "good"],
    examples=[
        {"text": "a dull and silly story", "output": "bad"},
        {"text": "bright from its first scene", "output": "good"},
    ],
)
Writes = Callable[[str, int], str | Completion]
"""What stands in for a model: (prompt, seed) -> its completion."""


def nothing() -> None:
    return None


def scripted(writes: Writes, batch_prompts: int = 4) -> Generator:
    def write_all(state: None, prompts: list[Prompt]) -> list[Completion]:
        found = (writes(prompt.text, prompt.seed) for prompt in prompts)
        return [c if isinstance(c, Completion) else Completion(c, 5, 2, True) for c in found]

    return Generator("script", nothing, write_all, batch_prompts)


def open_context(
    folder: Path, writes: Writes, task: Task | None, executor: Executor | None = None
) -> CorpusContext:
    space = make_space(folder / "store", folder, executor=executor)
    return CorpusContext(space, seed=3, name="source", task=task, generator=scripted(writes))


def write_seeds(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
