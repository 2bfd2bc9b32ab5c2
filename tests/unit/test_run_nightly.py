"""What serve and deploy refuse before they begin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.run_nightly import as_parameters, run_nightly
from tasks.recipe_file import load_recipe
from tasks.recipe_resolution import resolve

NIGHTPRESS = Path(sys.executable).with_name("nightpress")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve"], "schedule.cron: nothing says when nights begin"),
        (["deploy", "--pool", "nights"], "schedule.cron: nothing says when nights begin"),
        (
            ["deploy", "--pool", "nights", "--set", "schedule.cron='0 2 * * *'"],
            "set PREFECT_API_URL",
        ),
        (["run", "--deadline", "soon"], "schedule.deadline: expected a time of day as HH:MM"),
    ],
)
def test_what_is_missing_is_told(
    arguments: list[str], told: str, recipe_file: Path, tmp_path: Path
) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "NIGHTPRESS"))}
    done = subprocess.run(
        [str(NIGHTPRESS), *arguments, str(recipe_file)],
        env=kept | {"NIGHTPRESS_HOME": str(tmp_path / "state")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr


def test_a_recipe_comes_back_from_prefect_as_it_went(recipe_file: Path, tmp_path: Path) -> None:
    """Its paths and plugins are resolved once more there, which changes nothing."""
    recipe = load_recipe(recipe_file, ["schedule.deadline='07:00'"])
    validated = run_nightly.validate_parameters(as_parameters(recipe))["recipe"]
    assert resolve(validated, tmp_path) == recipe
