"""A page of HTML that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.report import wording
from tasks.report.visible import show_text, show_token

FOLDER = Path(__file__).parent


def render_page(template: str, **values: Any) -> str:
    """Render a template of this folder, with the style of all pages as `style`.

    All values are escaped; only what the filter `svg` marks is not.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": Markup, "show_text": show_text, "show_token": show_token}
    style = Markup((FOLDER / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, wording=wording, **values)
