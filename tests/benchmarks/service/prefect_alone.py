"""Prefect alone: `python -m tests.benchmarks.service.prefect_alone FOLDER` runs an empty flow.

It has an API of its own for it, as a night has, with its database in the folder.
"""

import sys
from pathlib import Path

from prefect import flow

from infra.prefect_server import prefect_api
from infra.settings import quiet_environment, read_settings


@flow
def nothing() -> None:
    """Be run."""


if __name__ == "__main__":
    quiet_environment(read_settings())
    with prefect_api(Path(sys.argv[1])) as wait_until_up:
        wait_until_up()
        nothing()
