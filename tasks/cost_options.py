"""What the time of a worker costs, for the accounts of a night."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.recipe_parts import Config


class CostOptions(Config):
    worker_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one worker for an hour, in `currency`; without it no price is told."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "EUR"
    """ISO 4217."""
    watts_per_worker: Annotated[float, Field(gt=0)] | None = None
    """Power of a worker at work, for an estimate where no meter can be read; without it, 12 W for
    each thread and 700 W for each GPU are assumed."""
