"""A reader that pulls what channels serve, again and again, as a server's start script would."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from infra.storage import Store
from tasks.digests import digest_folder
from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME
from tasks.publish.pulling import pull

PAUSE_S = 0.3


class ChannelReader:
    """Polls in a thread, and keeps an account of all that it ever saw.

    A store that does not answer, or refuses, is no wrong model; anything but one of the models
    that may be served there is, and so is an older one after a newer one.
    """

    def __init__(self, store: Store, recipe: str, ages: dict[str, dict[str, int]], folder: Path):
        self.store = store
        self.recipe = recipe
        self.ages = ages
        """By export: the digests that it may serve, and their order in time."""
        self.folder = folder
        self.seen: dict[str, list[str]] = {export: [] for export in ages}
        """Whole models by export, in the order in which they were pulled."""
        self.num_unanswered = 0
        self.wrong: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join(timeout=120)
        assert not self._thread.is_alive()

    @property
    def newest(self) -> dict[str, str]:
        """By export: the model that was pulled last."""
        return {export: seen[-1] for export, seen in self.seen.items() if seen}

    def check(self) -> None:
        """Fail where a wrong model was ever seen, or none at all."""
        assert not self.wrong, self.wrong
        assert any(self.seen.values()), f"{self.num_unanswered} polls without an answer"

    def _poll(self) -> None:
        while not self._done.is_set():
            for export in self.ages:
                self._look(export)
            time.sleep(PAUSE_S)

    def _look(self, export: str) -> None:
        dest = self.folder / export
        try:
            manifest = pull(self.store, f"{self.recipe}/{export}", dest)
        except ValueError as error:  # nothing there, which may only be so before the first model
            if self.seen[export]:
                self.wrong.append(f"{export} is gone: {error}")
        except (OSError, StorageError) as error:
            if is_outage(error):
                self.num_unanswered += 1
            else:
                self.wrong.append(str(error))
        else:
            (dest / MANIFEST_NAME).unlink()
            self._judge(export, manifest.digest, digest_folder(dest))
        finally:
            shutil.rmtree(dest, ignore_errors=True)

    def _judge(self, export: str, promised: str, got: str) -> None:
        ages, seen = self.ages[export], self.seen[export]
        if got != promised or got not in ages:
            self.wrong.append(f"{export}: {got[:12]}, promised {promised[:12]}")
        elif seen and ages[seen[-1]] > ages[got]:
            self.wrong.append(f"{export}: an older model after a newer one")
        else:
            seen.append(got)


def is_outage(error: BaseException) -> bool:
    """Tell whether the store did not answer, or refused us; an absent object is another thing."""
    if isinstance(error, StorageError):
        return error.__cause__ is not None and is_outage(error.__cause__)
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
