"""The README.md of an artifact, with the front matter that the hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.publish.artifact import Artifact
from tasks.report import wording


def render_card(
    template: str, manifest: Artifact, store_uri: str, front_matter: dict[str, Any], **values: Any
) -> str:
    """Render a template of this folder; the same manifest gives the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        front_matter=yaml.safe_dump(front_matter, sort_keys=False).strip(),
        manifest=manifest,
        reference=f"{manifest.recipe_name}/{manifest.export}@sha256:{manifest.digest[:12]}",
        store_uri=store_uri,
        wording=wording,
        **values,
    )
