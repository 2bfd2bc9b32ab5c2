"""The limits that an export must keep to be published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.recipe_parts import Config

ScoreDrops = dict[str, Annotated[float, Field(ge=0)]]


class TeacherGate(Config):
    max_nats_increase: Annotated[float, Field(ge=0)] | None = None
    """Largest held-out increase over the teacher, in nats/token; of a classifier, nats/row."""
    max_bytes_ratio: Annotated[float, Field(gt=0)] | None = None
    """Largest size, as a fraction of the teacher at 4 bytes per parameter."""
    max_score_drop: ScoreDrops = Field(default_factory=dict)
    """By the name of an evaluation task: how far its score may be below the teacher's."""


class ChampionGate(Config):
    max_nats_increase: Annotated[float, Field(ge=0)] | None = None
    """Largest held-out increase over the channel's current artifact, in nats/token."""
    max_score_drop: ScoreDrops = Field(default_factory=dict)
    """By the name of an evaluation task: how far its score may be below the current artifact's."""
    must_not_fall: list[str] = Field(default_factory=list)
    """Names of evaluation tasks, earlier ones for example: an export is refused where one's score
    is significantly below the current artifact's."""


class Gate(Config):
    teacher: TeacherGate = TeacherGate()
    champion: ChampionGate = ChampionGate()

    @property
    def tasks(self) -> set[str]:
        """Names of the evaluation tasks that it has limits for."""
        champion = self.champion
        return {*self.teacher.max_score_drop, *champion.max_score_drop, *champion.must_not_fall}
