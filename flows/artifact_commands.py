"""Commands on what is in a store: list, show, pull, runs, promote, rollback, gc."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.command_options import AsJson, Reference, StoreUri, emit
from infra.settings import read_settings

if TYPE_CHECKING:
    from infra.storage import Store
    from tasks.publish.channels import ChannelEntry

app = typer.Typer()


@app.command("list")
def list_command(store: StoreUri = None, as_json: AsJson = False) -> None:
    """List the published artifacts of a store."""
    from flows.tables import print_artifacts
    from tasks.publish.listing import list_artifacts

    artifacts = list_artifacts(store_at(store))
    if as_json:
        emit({"artifacts": [artifact.model_dump(mode="json") for artifact in artifacts]})
    else:
        print_artifacts(artifacts)


@app.command()
def show(reference: Reference, store: StoreUri = None, as_json: AsJson = False) -> None:
    """Show one artifact: its metrics, the gate's evidence, and where it came from."""
    from flows.corpus_tables import print_data_manifest
    from flows.tables import print_manifest
    from tasks.publish.manifest import Manifest
    from tasks.publish.references import show as find_manifest
    from tasks.publish.signing import describe_signature

    place = store_at(store)
    manifest = find_manifest(place, reference)
    signed = describe_signature(place, manifest.prefix)
    if as_json:
        emit(manifest.model_dump(mode="json") | {"signature": signed})
    else:
        if isinstance(manifest, Manifest):
            print_manifest(manifest)
        else:
            print_data_manifest(manifest)
        print(f"signed: {signed or 'no'}")


@app.command()
def pull(
    reference: Reference,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to be made.")],
    verify_key: Annotated[
        Path | None,
        typer.Option(metavar="PUB.pem", help="ed25519 key that must have signed the artifact."),
    ] = None,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Download an artifact, check every byte of it, and put it in place at once."""
    from tasks.publish.pulling import pull as pull_artifact

    manifest = pull_artifact(store_at(store), reference, dest, verify_key=verify_key)
    if as_json:
        emit({"digest": manifest.digest, "path": str(dest), "num_bytes": manifest.num_bytes})
    else:
        print(f"{reference} is at {dest} ({manifest.num_bytes:,} bytes, {manifest.digest[:12]})")


@app.command()
def runs(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe's name.")],
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of a recipe, the newest first, whatever their end."""
    from flows.tables import print_runs
    from tasks.publish.run_history import read_runs, unfinished_runs

    place = store_at(store)
    records, unfinished = read_runs(place, name), unfinished_runs(place, name)
    if as_json:
        emit(
            {
                "runs": [record.model_dump(mode="json") for record in records],
                "unfinished": [run.model_dump(mode="json") for run in unfinished],
            }
        )
    else:
        print_runs(records, unfinished)


@app.command()
def promote(
    reference: Reference,
    channel: Annotated[str, typer.Option(help="Channel that shall serve the artifact.")],
    why: Annotated[str, typer.Option(help="For the channel's history.")],
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Make a channel serve an artifact that is in the store, whatever it served before."""
    from flows.renew_catalogue import renew_catalogue
    from tasks.publish.channels import promote as promote_artifact
    from tasks.publish.names import check_name
    from tasks.publish.references import show as find_manifest

    place, channel = store_at(store), check_name("channel", channel)
    manifest = find_manifest(place, reference)
    entry = promote_artifact(place, manifest, channel, getpass.getuser(), why)
    renew_catalogue(place)
    print_entry(f"{manifest.recipe_name}/{manifest.export}@{channel}", entry, as_json)


@app.command()
def rollback(
    reference: Reference,
    why: Annotated[str, typer.Option(help="For the channel's history.")],
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Make a channel serve again what it served before; REF names recipe, export and channel."""
    from flows.renew_catalogue import renew_catalogue
    from tasks.publish.channels import rollback as roll_back
    from tasks.publish.references import find_channel

    place = store_at(store)
    name, export, channel = find_channel(place, reference)
    entry = roll_back(place, name, export, channel, getpass.getuser(), why)
    renew_catalogue(place)
    print_entry(f"{name}/{export}@{channel}", entry, as_json)


@app.command()
def gc(
    keep_runs: Annotated[
        int, typer.Option(min=0, help="Runs per recipe whose artifacts and stages stay.")
    ] = 14,
    keep_entries: Annotated[
        int | None,
        typer.Option(min=1, help="Entries per channel whose artifacts stay; all, if not given."),
    ] = None,
    stage_days: Annotated[
        float, typer.Option(min=1, help="Days until a stage's output may go.")
    ] = 14,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete; without it, only say what would go.")
    ] = False,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> None:
    """Delete what no channel, none of the last runs and no night at work names."""
    from flows.renew_catalogue import renew_catalogue
    from flows.tables import print_garbage
    from tasks.publish.garbage import Keep, delete_garbage, find_garbage

    place, now = store_at(store), time.time()
    keep = Keep(runs=keep_runs, entries=keep_entries, stage_days=stage_days)
    garbage = find_garbage(place, keep, now)
    if delete:
        garbage = delete_garbage(place, garbage, keep, now)
        renew_catalogue(place)
    if as_json:
        emit(garbage.model_dump(mode="json") | {"num_bytes": garbage.num_bytes})
    else:
        print_garbage(garbage)


def print_entry(where: str, entry: ChannelEntry, as_json: bool) -> None:
    if as_json:
        emit(entry.model_dump(mode="json"))
    else:
        before = f" instead of sha256:{entry.previous[:12]}" if entry.previous else ""
        print(f"{where} serves sha256:{entry.digest[:12]}{before}")


def store_at(uri: str | None) -> Store:
    from infra.storage import open_store

    settings = read_settings()
    return open_store(uri or settings.store_uri(None), settings.home / "cache")
