"""What every file of sources, generators, labels and filters must keep to."""

import inspect
import subprocess
import sys

import pytest

from tasks.plugins import (
    KINDS,
    data_options,
    load_plugin,
    options_model,
    plugin_constant,
    plugin_names,
    uri_options,
)

POSITIONAL = {
    "source": ["context"],
    "generator": ["context"],
    "label": ["context", "rows"],
    "filter": ["context"],
}
MAY_USE = {
    "source": {"teacher", "generator"},
    "generator": {"teacher"},
    "label": {"teacher", "generator"},
    "filter": {"evaluation"},
}
PLUGINS = [(kind, name) for kind in POSITIONAL for name in plugin_names(kind)]

READ_ALL = f"""
import sys
from tasks.plugins import options_model, plugin_constant
for kind, name in {PLUGINS!r}:
    options_model(kind, name), plugin_constant(kind, name, "USES")
heavy = {{"torch", "transformers", "datasets", "sklearn", "datasketch", "rapidfuzz", "bm25s"}}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.fixture(params=PLUGINS, ids="-".join)
def plugin(request: pytest.FixtureRequest) -> tuple[str, str]:
    kind, name = request.param
    return kind, name


def test_takes_a_context_and_named_options(plugin: tuple[str, str]) -> None:
    kind, _ = plugin
    parameters = inspect.signature(load_plugin(*plugin)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == POSITIONAL[kind]
    assert list(options_model(*plugin).model_fields) == [
        p.name for p in parameters if p.kind is p.KEYWORD_ONLY
    ]


def test_says_what_it_uses(plugin: tuple[str, str]) -> None:
    kind, _ = plugin
    uses = plugin_constant(*plugin, "USES")
    assert isinstance(uses, tuple) and set(uses) <= MAY_USE[kind]


def test_says_what_it_does(plugin: tuple[str, str]) -> None:
    function = load_plugin(*plugin)
    module = inspect.getmodule(function)
    assert function.__doc__ and module and module.__doc__


def test_only_sources_read_files_of_the_recipe(plugin: tuple[str, str]) -> None:
    kind, _ = plugin
    assert set(data_options(*plugin)) <= set(uri_options(*plugin))
    assert kind == "source" or not uri_options(*plugin), "its bytes would not enter the key"


def test_options_are_read_without_importing_what_they_are_for() -> None:
    assert set(POSITIONAL) <= set(KINDS)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
