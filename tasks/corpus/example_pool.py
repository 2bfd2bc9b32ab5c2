"""Solved cases of a task, given and written, from which prompts are shown a few."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tasks.corpus.context import CorpusContext
from tasks.corpus.rows import find_output, read_output
from tasks.corpus.seeds import read_seeds
from tasks.corpus_options import Example, Task
from tasks.errors import CorpusError

SEED_SHARE = 0.75
"""Of the examples that a prompt shows; Self-Instruct, arXiv 2212.10560, shows 6 of 8."""


@dataclass
class Pool:
    """What the prompts of a round may show."""

    task: Task
    seeds: list[Example]
    """Given; the output is empty where it is not known."""
    written: list[Example] = field(default_factory=list)

    @property
    def paired(self) -> bool:
        return any(seed.text_pair is not None for seed in self.seeds)

    def draw(self, number: int, seed: int, solved: bool) -> list[Example]:
        """Return up to `number` examples in random order, with outputs if they are to be solved."""
        seeds = [example for example in self.seeds if example.output or not solved]
        given = min(len(seeds), max(number - len(self.written), round(number * SEED_SHARE)))
        new = min(len(self.written), number - given)
        rng = random.Random(seed)
        shown = rng.sample(seeds, given) + rng.sample(self.written, new)
        rng.shuffle(shown)
        return shown

    def scarcest_labels(self, number: int) -> list[str]:
        """Return the labels of the next rows: each time one of which there are fewest."""
        counts = Counter(example.output for example in self.written)
        chosen = []
        for _ in range(number):
            label = min(self.task.labels, key=lambda name: counts[name])
            counts[label] += 1
            chosen.append(label)
        return chosen


def read_examples(context: CorpusContext, uri: str, task: Task) -> Iterator[Example]:
    for number, row in enumerate(read_seeds(context, uri), start=1):
        output = read_output(row)
        try:
            known = "" if output is None else find_output(output, task)
        except ValueError as error:
            raise CorpusError(
                f"{context.name}: seed {number} of {uri}: {error}", "see task.labels in the recipe"
            ) from None
        yield Example(text=row["text"], text_pair=row.get("text_pair"), output=known)
