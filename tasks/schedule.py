"""When nights begin, when they must end, and what happens when two of them meet."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BeforeValidator

from tasks.recipe_parts import Config

NUM_CRON_FIELDS = 5


def check_cron(cron: str) -> str:
    try:
        if len(cron.split()) != NUM_CRON_FIELDS:
            raise CronSimError("five fields are needed")
        next(CronSim(cron, datetime.now(UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(
            f"expected minute, hour, day, month and weekday, such as '0 2 * * *' ({error})"
        ) from None
    return cron


def check_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("expected a time zone's IANA name, such as Europe/Berlin") from None
    return name


def check_deadline(clock: Any) -> Any:
    # YAML 1.1 reads an unquoted 22:30 as a number to the base of 60.
    if isinstance(clock, int) and not isinstance(clock, bool) and 0 <= clock < 24 * 60:
        clock = f"{clock // 60:02d}:{clock % 60:02d}"
    if not (isinstance(clock, str) and re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", clock)):
        raise ValueError("expected a time of day as HH:MM, such as '07:00'")
    return clock


class Schedule(Config):
    cron: Annotated[str, AfterValidator(check_cron)] | None = None
    """When nights begin, for `nightpress serve` and `nightpress deploy`: five fields."""
    timezone: Annotated[str, AfterValidator(check_timezone)] = "UTC"
    """IANA name of the time zone in which `cron` and `deadline` are read."""
    deadline: Annotated[str, BeforeValidator(check_deadline)] | None = None
    """HH:MM at which a night starts no more work; the next one after it began."""
    overlap: Literal["skip", "wait"] = "skip"
    """What a night does that finds another one of the same recipe running on its store."""

    def next_start(self, now: datetime) -> datetime | None:
        """Return when the next night begins, in the schedule's time zone; None without a cron."""
        local = now.astimezone(ZoneInfo(self.timezone))
        return next(CronSim(self.cron, local)) if self.cron else None

    def seconds_to_deadline(self, now: datetime) -> float | None:
        """Return the seconds from `now`, which names its time zone, to the next deadline.

        A time that the clocks leap over in spring is taken by the offset from before the leap.
        """
        if self.deadline is None:
            return None
        zone = ZoneInfo(self.timezone)
        clock, today = time.fromisoformat(self.deadline), now.astimezone(zone).date()
        for days in (0, 1):
            # In UTC, since two times of one zone are compared by their clocks alone.
            end = datetime.combine(today + timedelta(days), clock, zone).astimezone(UTC)
            if end > now:
                return (end - now).total_seconds()
        raise AssertionError("tomorrow's deadline is after now")
