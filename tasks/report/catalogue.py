"""`catalogue.html` at the store's root: every artifact and what serves it, on one page.

The page is made from the store alone, so whoever writes it last writes what is true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.publish.artifact import artifact_prefix
from tasks.publish.listing import Listing, list_artifacts, write_index
from tasks.report.page import render_page

if TYPE_CHECKING:
    from infra.storage import Store

CATALOGUE = "catalogue.html"


def write_catalogue(store: Store) -> None:
    artifacts = list_artifacts(store)
    write_index(store, artifacts)
    store.write(CATALOGUE, render_catalogue(artifacts, store.uri).encode())


def render_catalogue(artifacts: list[Listing], store_uri: str) -> str:
    """Render the page; links are relative to the store's root.

    Args:
        artifacts: In the order in which they are to stand.
    """
    return render_page(
        "catalogue.html.jinja",
        artifacts=artifacts,
        served=sum(bool(artifact.channels) for artifact in artifacts),
        channels=sorted({channel for artifact in artifacts for channel in artifact.channels}),
        store_uri=store_uri,
        prefix=lambda a: artifact_prefix(a.recipe, a.export, a.digest),
    )
