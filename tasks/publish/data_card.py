"""The data card: README.md of a published corpus, with the front matter that the hub reads."""

from __future__ import annotations

from typing import Any

from tasks.publish.cards import render_card
from tasks.publish.manifest import DataManifest
from tasks.report import wording

SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M"}
"""The hub's names for how many rows there are, each with the number that it ends below."""


def write_data_card(manifest: DataManifest, store_uri: str) -> str:
    """Render the card of a data set in a store; the same manifest gives the same bytes."""
    recipe = manifest.provenance.recipe
    return render_card(
        "data_card.md.jinja",
        manifest,
        store_uri,
        front_matter(manifest),
        corpus=manifest.corpus,
        task=recipe["task"],
        filters=[
            f"{chosen['name']}{wording.describe_options(chosen['options'])}"
            for chosen in recipe["corpus"]["filters"]
        ],
        seed=recipe["seed"],
    )


def front_matter(manifest: DataManifest) -> dict[str, Any]:
    recipe = manifest.provenance.recipe
    classifies = (recipe["task"] or {}).get("kind") == "classification"
    matter: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": "files/rows/*.parquet"}],
        "task_categories": ["text-classification" if classifies else "text-generation"],
        "size_categories": [name_size(manifest.num_rows)],
        "tags": ["nightpress", *(["synthetic"] if manifest.corpus.generators else [])],
    }
    stated = [name for name in manifest.corpus.licences if name != "unknown"]
    if len(stated) == len(manifest.corpus.licences) == 1:
        matter["license"] = stated[0]
    return matter


def name_size(num_rows: int) -> str:
    return next((name for bound, name in SIZES.items() if num_rows < bound), "n>1M")
