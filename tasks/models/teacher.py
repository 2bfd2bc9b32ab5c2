"""Find a model that a recipe names: a folder, a bucket's, or a hub id resolved to one commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.storage import localize
from tasks.errors import CheckpointError
from tasks.models.checkpoint import describe_model
from tasks.recipe_parts import NamedModel
from tasks.records import ModelRef

if TYPE_CHECKING:
    from infra.storage import Store

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*"]
"""What is fetched from the hub; pickled weights are not."""


def find_model(key: str, named: NamedModel, store: Store) -> ModelRef:
    """Return a model's record, downloading it where it is not local.

    Args:
        key: Where the recipe names it.

    Raises:
        ValueError: there is no such model.
        CheckpointError: it has no safetensors weights.
    """
    if Path(named.model).is_dir():
        return describe_model(Path(named.model), named.model)
    if named.model.startswith("s3://"):
        return describe_model(localize(store, named.model), named.model)
    folder = download(key, named)
    return describe_model(folder, str(folder))


def download(key: str, named: NamedModel) -> Path:
    """Fetch a hub model into Hugging Face's own cache; return its snapshot's folder.

    HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(named.model, revision=named.revision, allow_patterns=PATTERNS)
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{key}: {named.model!r} is no local folder and the hub did not give it "
            f"({reason}); expected a folder relative to the recipe, an s3:// URI, or a hub id"
        ) from None
    if not any(Path(path).glob("*.safetensors")):
        raise CheckpointError(f"{named.model} has no safetensors weights on the hub")
    return Path(path)
