"""PostgreSQL with a data folder of its own, on a free port of 127.0.0.1, under a password."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.prefect_server import free_port

START_TIMEOUT_S = 60
USER = "prefect"


@dataclass(frozen=True)
class Postgres:
    port: int
    password: str

    @property
    def url(self) -> str:
        """As Prefect takes it."""
        return f"postgresql+asyncpg://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def ask(self, query: str) -> list[str]:
        """Return the rows of a query, cells joined by `|`."""
        command = ["psql", "--host=127.0.0.1", f"--port={self.port}", f"--username={USER}"]
        command += ["--dbname=postgres", "--no-align", "--tuples-only", f"--command={query}"]
        asked = os.environ | {"PGPASSWORD": self.password}
        done = subprocess.run(command, env=asked, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()


def find_binaries() -> Path | None:
    """Return Debian's newest, or the folder of whatever is on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextmanager
def running_postgres(binaries: Path) -> Iterator[Postgres]:
    """Start a server and stop it with its data; root starts it as the user `postgres`."""
    server = Postgres(free_port(), secrets.token_hex(12))
    who = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="nightpress-postgres-"))  # pytest's is root's alone
    data = folder / "data"
    try:
        password = folder / "password"
        password.write_text(server.password)
        for path in (folder, password):
            shutil.chown(path, **who) if who else None
        subprocess.run(
            [
                binaries / "initdb",
                f"--pgdata={data}",
                f"--username={USER}",
                "--auth=scram-sha-256",
                f"--pwfile={password}",
                "--encoding=UTF8",
                "--no-sync",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
            **who,
        )
        process = subprocess.Popen(
            [
                binaries / "postgres",
                *("-D", data, "-p", str(server.port)),
                *("-c", "listen_addresses=127.0.0.1"),
                *("-c", "unix_socket_directories="),
                *("-c", "fsync=off"),
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("wb"),
            **who,
        )
        try:
            wait_until_ready(server, process, folder / "log")
            yield server
        finally:
            process.send_signal(
                signal.SIGINT
            )  # fast: connections are closed, nothing is waited for
            process.wait(timeout=30)
    finally:
        shutil.rmtree(folder)


def wait_until_ready(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            server.ask("SELECT 1")
            return
        except subprocess.CalledProcessError:
            time.sleep(0.2)
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}")
