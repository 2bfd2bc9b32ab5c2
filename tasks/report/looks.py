"""What looks into models found, and how it stands side by side on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from infra.storage import localize
from tasks.evaluate.sampled import RankedToken, Samples
from tasks.models.components import NAMES, Component
from tasks.records import DataRef
from tasks.report.report_data import ModelLook
from tasks.run_records import RunRecord

if TYPE_CHECKING:
    from infra.storage import Store

TITLE = "inspect "


def read_looks(store: Store, record: RunRecord) -> list[ModelLook]:
    """Read what the night's `inspect` stages left in the store."""
    looks = []
    for stage in record.stages:
        if stage.stage == "inspect":
            done = json.loads(store.read(f"stages/{stage.stage}/{stage.key}/complete.json"))
            folder = localize(store, DataRef(**done["record"]).uri)
            looks.append(read_look(stage.title.removeprefix(TITLE), folder))
    return looks


def read_look(title: str, folder: Path) -> ModelLook:
    components = json.loads((folder / "components.json").read_bytes())
    samples = folder / "samples.json"
    return ModelLook(
        title=title,
        components=components and [Component(**component) for component in components],
        samples=Samples.model_validate_json(samples.read_bytes()) if samples.exists() else None,
    )


class ComponentRow(NamedTuple):
    name: str
    before: Component
    after: Component | None
    """None where there is no smaller model to hold against the teacher."""


def list_components(looks: tuple[ModelLook, ...]) -> tuple[str | None, list[ComponentRow]]:
    """Put the teacher's components beside those of the next model that tells its own.

    Returns:
        The second model's title, None where there is none; and a row for each component, with the
        sum of all as the last, nothing where the teacher does not tell.
    """
    before = looks[0].components if looks else None
    if not before:
        return None, []
    telling = ((look.title, look.components) for look in looks[1:] if look.components)
    title, after = next(telling, (None, None))
    old = {part.name: part for part in [*before, add_up(before)]}
    new = {part.name: part for part in [*after, add_up(after)]} if after else {}
    rows = []
    for name in (*NAMES, "all"):
        if name in old or name in new:
            nothing = Component(name=name, num_parameters=0, flops_per_token=0)
            second = new.get(name, nothing) if after else None
            rows.append(ComponentRow(name, old.get(name, nothing), second))
    return title, rows


def add_up(parts: list[Component]) -> Component:
    return Component(
        name="all",
        num_parameters=sum(part.num_parameters for part in parts),
        flops_per_token=sum(part.flops_per_token for part in parts),
    )


class Text(NamedTuple):
    """What one model made of a prompt."""

    title: str
    same: str
    """As far as it is the teacher's."""
    rest: str
    ended: bool


class Ranking(NamedTuple):
    """What one model expected at one place."""

    title: str
    ranked: list[RankedToken]
    held: list[float]
    """Probability of all of them, at each temperature."""


class Place(NamedTuple):
    context: str
    actual: str
    rankings: list[Ranking]


class SamplesTable(NamedTuple):
    protocol: str
    temperatures: list[float]
    texts: list[tuple[str, list[Text]]]
    """(prompt, what each model went on with)"""
    places: list[Place]
    agreements: list[tuple[str, int]]
    """(title, places at which it would write the teacher's next token), but for the teacher."""


def tabulate_samples(looks: tuple[ModelLook, ...]) -> SamplesTable | None:
    """Put what models write beside what the first of them, the teacher, writes; those that had
    other prompts are left out."""
    written = [(look.title, look.samples) for look in looks if look.samples]
    if not written:
        return None
    first = written[0][1]
    prompts = [continuation.prompt for continuation in first.continuations]
    same = [(t, s) for t, s in written if [c.prompt for c in s.continuations] == prompts]
    texts = []
    for number, teacher in enumerate(first.continuations):
        column: list[Text] = []
        for title, samples in same:
            found = samples.continuations[number]
            shared = count_shared(teacher.text, found.text) if column else 0
            column.append(Text(title, found.text[:shared], found.text[shared:], found.ended))
        texts.append((teacher.prompt, column))
    places = [
        Place(
            at.context,
            at.actual,
            [rank(title, samples, number) for title, samples in same],
        )
        for number, at in enumerate(first.next_tokens)
    ]
    chosen = [[r.ranked[0].text for r in place.rankings] for place in places]
    agreements = [
        (title, sum(row[0] == row[number] for row in chosen))
        for number, (title, _) in enumerate(same)
        if number > 0
    ]
    return SamplesTable(first.protocol, first.temperatures, texts, places, agreements)


def count_shared(one: str, other: str) -> int:
    """Return the length of the beginning that two texts share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def rank(title: str, samples: Samples, number: int) -> Ranking:
    ranked = samples.next_tokens[number].ranked
    columns = zip(*(token.probabilities for token in ranked), strict=True)
    return Ranking(title, ranked, [sum(column) for column in columns])
