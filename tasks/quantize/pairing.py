"""Which method goes with which format, as their files say; answered without importing torch."""

from tasks.plugins import plugin_constant, plugin_names


def check_pair(method: str, export_format: str) -> None:
    """Make sure that a format can hold what a method makes.

    Raises:
        ValueError: it cannot; the message names the formats that can.
    """
    made = plugin_constant("method", method, "ENCODINGS")
    holders = [
        name.replace("_", "-")
        for name in plugin_names("format")
        if set(made) <= set(plugin_constant("format", name, "HOLDS"))
    ]
    if export_format.replace("_", "-") not in holders:
        raise ValueError(
            f"format {export_format} cannot hold what method {method} makes "
            f"({', '.join(made)}); choose from {holders}"
        )
