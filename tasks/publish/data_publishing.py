"""Publish a corpus's rows as a data set: files, manifest, channel, as a model is published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.storage import localize
from tasks.corpus_options import DATA_SET
from tasks.digests import digest_files
from tasks.errors import CorpusError
from tasks.publish.artifact import list_entries
from tasks.publish.channels import read_newest
from tasks.publish.data_card import write_data_card
from tasks.publish.manifest import DataManifest
from tasks.publish.provenance import Provenance
from tasks.publish.publishing import (
    advance_channel,
    is_stored,
    write_files,
    write_manifest,
)
from tasks.run_records import CorpusResult, PublishedCorpus, StageResult

if TYPE_CHECKING:
    from infra.storage import Store

STAGES = ("source", "label", "corpus")


def publish_data(
    store: Store,
    result: CorpusResult,
    stages: list[StageResult],
    provenance: Provenance,
    report_html: str,
    channel: str,
    by: str,
    why: str,
    signing_key: Path | None = None,
) -> PublishedCorpus:
    """Put the rows into the store and make the channel serve them; the packed blocks stay behind.

    The digest is that of the rows alone, so another tokenizer or block size publishes nothing anew.

    Args:
        stages: Of the run so far.
        by: Who publishes, for the channel's history.
        signing_key: PEM file of the ed25519 key that signs the manifest.

    Raises:
        ValueError: there is no such key in that file.
        CorpusError: the shards do not hold the rows that the record counts.
        StorageError: the store refuses them, or returned other bytes than were written.
    """
    folder = localize(store, f"{result.corpus.uri}/rows")
    files = {f"rows/{name}": entry for name, entry in list_entries(folder).items()}
    name = provenance.recipe["name"]
    newest = read_newest(store, name, DATA_SET, channel)
    manifest = DataManifest(
        recipe_name=name,
        export=DATA_SET,
        digest=digest_files({path: entry.sha256 for path, entry in files.items()}),
        parent=newest.digest if newest else None,
        num_bytes=sum(entry.bytes for entry in files.values()),
        files=files,
        num_rows=result.corpus.num_documents,
        columns=check_rows(folder, result.corpus.num_documents),
        corpus=result.corpus,
        steps=result.steps,
        stages=[stage for stage in stages if stage.stage in STAGES],
        provenance=provenance,
    )
    if not is_stored(store, name, DATA_SET, manifest.digest):
        write_files(store, manifest.prefix, folder, "rows/")
        card = write_data_card(manifest, store.uri)
        write_manifest(store, manifest, card, report_html, signing_key)
    return PublishedCorpus(
        digest=manifest.digest,
        uri=f"{store.uri}/{manifest.prefix}",
        num_rows=manifest.num_rows,
        num_bytes=manifest.num_bytes,
        outcome=advance_channel(store, manifest, None, channel, by, why, regate=None),
    )


def check_rows(folder: Path, num_rows: int) -> dict[str, str]:
    """Return the shards' columns with Arrow's types.

    Raises:
        CorpusError: a shard cannot be read or differs from the others, or rows are missing.
    """
    import pyarrow.parquet

    found, columns = 0, None
    for path in sorted(folder.glob("*.parquet")):
        try:
            shard = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise CorpusError(f"{path} is not a shard of rows: {error}") from error
        with shard:
            found += shard.metadata.num_rows
            here = {field.name: str(field.type) for field in shard.schema_arrow}
        if here != (columns := columns or here):
            raise CorpusError(f"{path} has the columns {here}, expected {columns}")
    if found != num_rows or columns is None:
        raise CorpusError(f"expected {num_rows:,} rows in {folder}, got {found:,}")
    return columns
