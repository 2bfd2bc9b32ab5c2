"""An entry's data on this machine: local, from the bucket, or from the hub."""

from __future__ import annotations

from pathlib import Path

from tasks.corpus.context import CorpusContext
from tasks.corpus.retrieval.catalogue import HUB_FILE, DataSet, entry_uri
from tasks.digests import digest_path
from tasks.errors import CorpusError


def fetch_entry(context: CorpusContext, catalogue: str, entry: DataSet) -> Path:
    """Return the file or folder, checked against the sha256 that the entry states.

    Raises:
        CorpusError: it is not there, or it is another than the entry says.
    """
    hub_file = HUB_FILE.fullmatch(entry.uri)
    if hub_file:
        path = download(*hub_file.groups())
    else:
        uri = entry_uri(catalogue, entry.uri)
        try:
            path = context.local(uri)
        except FileNotFoundError:
            path = Path(uri)
        if not path.exists():
            raise CorpusError(f"data set {entry.name}: no file or folder {uri}")
    if entry.sha256 and (digest := digest_path(path)) != entry.sha256:
        raise CorpusError(
            f"data set {entry.name}: {entry.uri} has the sha256 {digest}, its entry says "
            f"{entry.sha256}",
            "the data have changed: look at them, then correct the catalogue",
        )
    return path


def download(repository: str, commit: str, file: str) -> Path:
    """Fetch a file of a data set into Hugging Face's own cache.

    HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=commit))
    except (HTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(
            f"the hub did not give {file} of {repository} at {commit[:12]}: {reason}"
        ) from None
