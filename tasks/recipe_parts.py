"""What all parts of a recipe are made of."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from tasks.plugins import resolve_options

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0, lt=2**63)]


class Config(BaseModel):
    """Base of all parts of a recipe: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class NamedModel(Config):
    model: str
    """A folder, a hub id, or an s3:// URI."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the commit that it resolves to enters the keys."""


class Plugin(Config):
    name: str
    options: dict[str, Any] = {}

    def resolved(self, kind: str) -> Self:
        """Return a copy whose options are checked, with the plugin's defaults filled in."""
        return self.model_copy(update={"options": resolve_options(kind, self.name, self.options)})
