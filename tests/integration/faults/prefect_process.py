"""Prefect's server as a process that a test may kill."""

from pathlib import Path

from infra.prefect_server import free_port, start_server, wait_until_up


class Prefect:
    """A server that can be killed and started again, at the same URL with the same database."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.start()

    def start(self) -> None:
        self.process = start_server(self.home, self.port, schedules=False)
        wait_until_up(f"{self.url}/health", self.process, self.home / "server.log")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
