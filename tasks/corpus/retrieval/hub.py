"""A catalogue of what the Hugging Face hub has for a task, pinned so that it stays the same.

A search finds something else every day, so no night searches: `nightpress catalogue` does, and
writes a catalogue that a recipe names. Each of its entries is one file of one commit.
"""

from __future__ import annotations

from typing import Any

from tasks.corpus.retrieval.catalogue import DataSet, Entry, rank
from tasks.corpus.retrieval.ranking import query_words
from tasks.errors import CorpusError

PARQUET = "refs/convert/parquet"
"""The revision in which the hub keeps every public data set as Parquet."""
MAX_WORDS = 12
"""Words of a query that the hub is asked for, one request each."""
MAX_DESCRIPTION = 600
"""Characters of a description that are kept."""


def search_hub(api: Any, query: str, limit: int) -> list[DataSet]:
    """Return the public data sets that fit best, the best first.

    The hub finds names that hold a word; what it returns is ranked here, by BM25.

    Args:
        api: A `huggingface_hub.HfApi`.
        limit: At most so many entries, and so many found for each word.

    Raises:
        CorpusError: the hub does not answer, or has nothing for these words.
    """
    from huggingface_hub.errors import HTTPError

    asked = list(query_words(query).values())[:MAX_WORDS]
    try:
        found = {
            info.id: info
            for word in asked
            for info in api.list_datasets(search=word, sort="downloads", limit=limit, full=True)
            if not (info.private or info.gated or info.disabled)
        }
        ranked, _ = rank([read_card(info) for _, info in sorted(found.items())], query)
        pinned = (pin(api, entry) for _, entry in ranked[:limit])
        entries = [entry for entry in pinned if entry]
    except (HTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(
            f"the hub did not answer: {reason}",
            "a search needs the network; HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured",
        ) from None
    if not entries:
        raise CorpusError(f"the hub has no public data set in Parquet for the words {asked}")
    return entries


def read_card(info: Any) -> Entry:
    tags = [tag.partition(":") for tag in sorted(info.tags or [])]
    said = " ".join((info.description or "").split())[:MAX_DESCRIPTION]
    kinds = [value for key, _, value in tags if key in ("task_categories", "task_ids")]
    return Entry(
        name=info.id,
        description=" ".join([said, *kinds]).strip(),
        uri=f"hf://datasets/{info.id}",
        languages=[value for key, _, value in tags if key == "language"],
        licence=next((value for key, _, value in tags if key == "license"), "unknown"),
    )


def pin(api: Any, entry: Entry) -> DataSet | None:
    """Return the entry for the first of the data set's training files, None where it has none."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.dataset_info(entry.name, revision=PARQUET, files_metadata=True)
    except (RevisionNotFoundError, RepositoryNotFoundError):
        return None
    files = sorted(
        (file for file in info.siblings or [] if file.rfilename.endswith(".parquet")),
        key=lambda file: ("train" not in file.rfilename, file.rfilename),
    )
    if not files:
        return None
    return DataSet(
        **entry.model_dump(exclude={"uri"}),
        uri=f"{entry.uri}@{info.sha}/{files[0].rfilename}",
        sha256=files[0].lfs.sha256 if files[0].lfs else None,
    )
