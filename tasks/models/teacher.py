"""Find the teacher: a folder, a bucket's folder, or a hub id resolved to one commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.storage import localize
from tasks.errors import CheckpointError
from tasks.models.checkpoint import describe_model
from tasks.recipe import Teacher
from tasks.records import ModelRef

if TYPE_CHECKING:
    from infra.storage import Store

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "LICENSE*", "NOTICE*"]
"""What is fetched from the hub; pickled weights are not."""


def find_teacher(teacher: Teacher, store: Store) -> ModelRef:
    """Return the teacher's record, downloading it where it is not local.

    Raises:
        ValueError: there is no such model.
        CheckpointError: it has no safetensors weights.
    """
    if Path(teacher.model).is_dir():
        return describe_model(Path(teacher.model), teacher.model)
    if teacher.model.startswith("s3://"):
        return describe_model(localize(store, teacher.model), teacher.model)
    folder = download(teacher)
    return describe_model(folder, str(folder))


def download(teacher: Teacher) -> Path:
    """Fetch a hub model into Hugging Face's own cache; return its snapshot's folder.

    HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are honoured.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = snapshot_download(teacher.model, revision=teacher.revision, allow_patterns=PATTERNS)
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"teacher.model: {teacher.model!r} is no local folder and the hub did not give it "
            f"({reason}); expected a folder relative to the recipe, an s3:// URI, or a hub id"
        ) from None
    if not any(Path(path).glob("*.safetensors")):
        raise CheckpointError(f"{teacher.model} has no safetensors weights on the hub")
    return Path(path)
