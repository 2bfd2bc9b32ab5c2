"""The limits that an export must keep to be published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.recipe_parts import Config


class TeacherGate(Config):
    max_nats_increase: Annotated[float, Field(ge=0)] | None = None
    """Largest held-out increase over the teacher, in nats/token."""
    max_bytes_ratio: Annotated[float, Field(gt=0)] | None = None
    """Largest size, as a fraction of the teacher at 4 bytes per parameter."""


class ChampionGate(Config):
    max_nats_increase: Annotated[float, Field(ge=0)] | None = None
    """Largest held-out increase over the channel's current artifact, in nats/token."""


class Gate(Config):
    teacher: TeacherGate = TeacherGate()
    champion: ChampionGate = ChampionGate()
