"""Arguments that commands share, and how their results are printed for programs."""

import json
from typing import Annotated, Any

import typer

SCHEMA_VERSION = 1

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
StoreUri = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URI", help="file:// or s3:// store; default NIGHTPRESS_STORE."
    ),
]
Reference = Annotated[
    str, typer.Argument(metavar="REF", help="RECIPE[/EXPORT][@CHANNEL | @sha256:HEX]")
]


def emit(document: dict[str, Any]) -> None:
    """Print one JSON document, stamped with the version that its readers check."""
    print(json.dumps({"schema_version": SCHEMA_VERSION} | document, indent=1))
