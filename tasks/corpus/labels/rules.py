"""A user's rules: `"awesome" -> positive`; where several speak, a label model decides.

Each line of `rules` is one rule: a text in double quotes, found anywhere in a row's input in any
case, or a regular expression between slashes, an arrow, and a label of the task:

    "awesome" -> positive
    /\\bnot (good|worth)\\b/ -> negative
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from tasks.corpus.context import CorpusContext
from tasks.corpus.label_model import Votes, count_majority, fit_accuracies, weigh_votes
from tasks.corpus.shards import Rows
from tasks.corpus.words import input_texts

USES = ()

LINE = re.compile(r"""(?:"(?P<text>.+)"|/(?P<pattern>.+)/)\s*->\s*(?P<label>.+)""")


class Rule(NamedTuple):
    pattern: re.Pattern[str]
    label: int
    """Number of it among the task's."""


def label(
    context: CorpusContext,
    rows: Rows,
    *,
    rules: str,
    resolve: Literal["majority", "dawid_skene"] = "majority",
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> Iterator[str | None]:
    """Yield the label that the rules agree on; None where none speaks, or they do not agree.

    All rows are read twice, one shard in memory at a time. `majority` counts; `dawid_skene`
    weighs each rule by how often it is right, which it learns from where rules meet, and so is for
    rules that often do.

    Args:
        min_confidence: Of the label's probability, or its share of the votes; two labels that are
            equally likely are none.

    Raises:
        ValueError: the task is no classification, or a line is no rule.
    """
    labels = context.task.labels if context.task else []
    parsed = parse_rules(rules, labels)
    patterns = Counter(take_votes(row_text, parsed) for row_text in texts(rows))
    patterns = Counter({votes: count for votes, count in patterns.items() if any_vote(votes)})
    decided: dict[Votes, str | None] = {}
    if patterns:
        accuracies = fit_accuracies(patterns, len(labels)) if resolve == "dawid_skene" else None
        for votes in patterns:
            shares = (
                count_majority(votes, len(labels))
                if accuracies is None
                else weigh_votes(votes, accuracies, len(labels))
            )
            *_, second, first = sorted(shares)
            sure = first >= min_confidence and first - second > 1e-9
            decided[votes] = labels[int(shares.argmax())] if sure else None
    for row_text in texts(rows):
        yield decided.get(take_votes(row_text, parsed))


def parse_rules(rules: str, labels: list[str]) -> list[Rule]:
    if not labels:
        raise ValueError("rules give labels: expected task.kind: classification with task.labels")
    parsed = [parse_rule(line.strip(), labels) for line in rules.splitlines() if line.strip()]
    if not parsed:
        raise ValueError('rules: expected lines such as "awesome" -> positive, got none')
    return parsed


def parse_rule(line: str, labels: list[str]) -> Rule:
    """Return the rule of a line. Raises: ValueError: it is none, or its label is none."""
    found = LINE.fullmatch(line)
    if not found:
        raise ValueError(f'rules: expected "text" -> label or /regex/ -> label, got {line!r}')
    if found["label"] not in labels:
        raise ValueError(f"rules: {line!r}: {found['label']!r} is none of {labels}")
    try:
        pattern = (
            re.compile(re.escape(found["text"]), re.IGNORECASE)
            if found["text"]
            else re.compile(found["pattern"])
        )
    except re.error as error:
        raise ValueError(f"rules: {line!r}: not a regular expression: {error}") from None
    return Rule(pattern, labels.index(found["label"]))


def texts(rows: Rows) -> Iterator[str]:
    return ("\n".join(input_texts(row)) for row in rows)


def take_votes(text: str, rules: list[Rule]) -> Votes:
    return tuple(rule.label if rule.pattern.search(text) else None for rule in rules)


def any_vote(votes: Votes) -> bool:
    return any(vote is not None for vote in votes)
