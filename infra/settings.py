"""Where this process keeps its state: environment variables, read in one place."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    home: Path
    """State folder: Prefect's database, scratch space, the embedded store."""
    store_override: str | None
    """URI from NIGHTPRESS_STORE; it wins over the recipe."""
    signing_key: Path | None = None
    """PEM file from NIGHTPRESS_SIGNING_KEY, with the ed25519 key that signs manifests."""

    def store_uri(self, recipe_store: str | None) -> str:
        return self.store_override or recipe_store or f"file://{self.home / 'store'}"

    def webhook_url(self, variable: str) -> str | None:
        """Return a webhook's URL, a secret; read when it is wanted, and kept nowhere."""
        return os.environ.get(variable)

    def endpoint_url(self) -> str | None:
        """Return the base URL of the server that generates text, such as http://host:8000/v1."""
        return os.environ.get("NIGHTPRESS_ENDPOINT")

    def endpoint_key(self) -> str | None:
        """Return that server's key, a secret; read where it is used, and kept nowhere."""
        return os.environ.get("NIGHTPRESS_ENDPOINT_KEY")

    @property
    def scratch(self) -> Path:
        return self.home / "scratch"


def read_settings() -> Settings:
    home = Path(os.environ.get("NIGHTPRESS_HOME", ".nightpress")).resolve()
    key = os.environ.get("NIGHTPRESS_SIGNING_KEY")
    return Settings(
        home=home,
        store_override=os.environ.get("NIGHTPRESS_STORE"),
        signing_key=Path(key).absolute() if key else None,
    )


def quiet_environment(settings: Settings) -> None:
    """Turn off the libraries' telemetry and keep their state in ours; to be called first of all."""
    (settings.home / "prefect").mkdir(parents=True, exist_ok=True)
    debug = bool(os.environ.get("NIGHTPRESS_DEBUG"))
    defaults = {
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # How a run ended is said once, by the command; --debug lets the libraries speak, too.
        "PREFECT_LOGGING_LEVEL": "INFO" if debug else "CRITICAL",
        # Else a server that is gone is an error for each event of each stage.
        "PREFECT_INTERNAL_LOGGING_LEVEL": "INFO" if debug else "CRITICAL",
        # Ray would print a native stack trace when the command is asked to stop.
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
