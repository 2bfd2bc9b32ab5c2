"""Cron, time zone, deadline and overlap, as a recipe says them."""

from datetime import datetime
from pathlib import Path

import pytest

from tasks.recipe_file import load_recipe
from tasks.schedule import Schedule


@pytest.mark.parametrize(
    ("now", "deadline", "zone", "hours"),
    [
        ("2026-11-20T01:00:00+00:00", "07:00", "UTC", 6),
        ("2026-11-20T07:00:00+00:00", "07:00", "UTC", 24),
        ("2026-11-20T22:00:00+00:00", "07:00", "Europe/Berlin", 8),
        ("2026-11-20T23:30:00+00:00", "00:00", "Europe/Berlin", 23.5),
        ("2026-03-28T21:00:00+00:00", "07:00", "Europe/Berlin", 8),  # the clocks go forward
        ("2026-10-24T20:00:00+00:00", "07:00", "Europe/Berlin", 10),  # and back
        ("2026-03-29T00:00:00+00:00", "02:30", "Europe/Berlin", 1.5),  # a time that does not come
        ("2026-11-20T18:00:00-08:00", "07:00", "Asia/Kolkata", 23.5),
    ],
)
def test_the_next_deadline(now: str, deadline: str, zone: str, hours: float) -> None:
    schedule = Schedule(deadline=deadline, timezone=zone)
    assert schedule.seconds_to_deadline(datetime.fromisoformat(now)) == hours * 3600


def test_without_a_deadline_there_is_none() -> None:
    now = datetime.fromisoformat("2026-11-20T01:00:00+00:00")
    assert Schedule().seconds_to_deadline(now) is None
    assert Schedule().next_start(now) is None


def test_the_next_start_is_in_the_schedules_zone() -> None:
    schedule = Schedule(cron="0 2 * * mon", timezone="Europe/Berlin")
    start = schedule.next_start(datetime.fromisoformat("2026-11-20T01:00:00+00:00"))
    assert start == datetime.fromisoformat("2026-11-23T02:00:00+01:00")


def test_a_clock_that_yaml_reads_as_a_number_is_a_clock(recipe_file: Path) -> None:
    for clock in ("22:30", "'22:30'"):
        loaded = load_recipe(recipe_file, [f"schedule.deadline={clock}"])
        assert loaded.schedule.deadline == "22:30"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("schedule.cron=every night", "schedule.cron: expected minute, hour, day"),
        ("schedule.cron=0 25 * * *", "got '0 25 * * *'"),
        ("schedule.cron=0 0 2 * * *", "five fields are needed"),
        ("schedule.timezone=Berlin", "schedule.timezone: expected a time zone's IANA name"),
        ("schedule.timezone=../../etc/passwd", "schedule.timezone: expected a time zone's"),
        ("schedule.deadline=7:00 am", "schedule.deadline: expected a time of day as HH:MM"),
        ("schedule.deadline=1440", "schedule.deadline: expected a time of day as HH:MM"),
        ("schedule.overlap=queue", "schedule.overlap: Input should be 'skip' or 'wait'"),
        ("schedule.until=x", "unknown key; known here: cron, deadline, overlap, timezone"),
    ],
)
def test_a_wrong_schedule_is_told_when_the_recipe_is_read(
    recipe_file: Path, override: str, told: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_recipe(recipe_file, [override])
    assert told in str(caught.value)
