"""Plugins: a plugin's name is its file's name, and its options are its keyword-only parameters.

`criterion: {name: wanda, options: {}}` is the function `score` of `tasks/prune/criteria/wanda.py`.
There is no registry and no list to edit. Names and options are read from the source as text, so
that a typo in a recipe is answered without importing torch.
"""

import ast
import importlib
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

Uri = Annotated[str, "uri"]
"""An option that names a JSONL file of rows: relative to the recipe, absolute, or s3://."""

DataUri = Annotated[str, "uri", "data"]
"""The same for a file or folder of another kind."""

CatalogueUri = Annotated[str, "uri", "data", "catalogue"]
"""The same for a catalogue of data sets; what its entries lead to enters the key with it."""

KINDS = {
    "source": ("tasks/corpus/sources", "read"),
    "generator": ("tasks/corpus/generators", "connect"),
    "label": ("tasks/corpus/labels", "label"),
    "filter": ("tasks/corpus/filters", "keep"),
    "criterion": ("tasks/prune/criteria", "score"),
    "utility": ("tasks/prune/utilities", "measure"),
    "initializer": ("tasks/models/initializers", "initialize"),
    "loss": ("tasks/distill/losses", "loss"),
    "encoding": ("tasks/models/quantized", "unpack"),
    "method": ("tasks/quantize/methods", "quantize"),
    "format": ("tasks/quantize/formats", "write"),
}
"""Kind of plugin: its folder and the function that each file in it defines."""

ROOT = Path(__file__).parent.parent
TYPES = {t.__name__: t for t in (int, float, str, bool)} | {
    "Literal": Literal,
    "Annotated": Annotated,
    "Field": Field,
    "Uri": Uri,
    "DataUri": DataUri,
    "CatalogueUri": CatalogueUri,
    "None": None,
}


def plugin_names(kind: str) -> list[str]:
    folder, _ = KINDS[kind]
    return sorted(p.stem for p in (ROOT / folder).glob("*.py") if p.stem != "__init__")


def plugin_path(kind: str, name: str) -> Path:
    """Return the plugin's source file.

    Raises:
        ValueError: no such plugin; the message lists those that exist.
    """
    names = plugin_names(kind)
    file_name = name.replace("-", "_")
    if file_name not in names:
        raise ValueError(f"unknown {kind} {name!r}; choose from {names}")
    return ROOT / KINDS[kind][0] / f"{file_name}.py"


def load_plugin(kind: str, name: str) -> Callable[..., Any]:
    """Import the plugin's file and return its function."""
    folder, function = KINDS[kind]
    module = importlib.import_module(f"{folder.replace('/', '.')}.{plugin_path(kind, name).stem}")
    return getattr(module, function)  # type: ignore[no-any-return]


@cache
def options_model(kind: str, name: str) -> type[BaseModel]:
    """Build the pydantic model of a plugin's options from its function's signature."""
    function = KINDS[kind][1]
    tree = ast.parse(plugin_path(kind, name).read_text(encoding="utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    fields: dict[str, Any] = {}
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        assert argument.annotation is not None, f"{kind} {name}: {argument.arg} has no type"
        annotation = eval(ast.unparse(argument.annotation), dict(TYPES))  # our own source
        fields[argument.arg] = (annotation, ... if default is None else ast.literal_eval(default))
    config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    return create_model(f"{kind} {name}", __config__=config, **fields)


def resolve_options(kind: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the plugin's options, checked and with its defaults filled in.

    Raises:
        ValueError: an option that the plugin does not have, or of another type.
    """
    model = options_model(kind, name)
    try:
        return model(**options).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = sorted(model.model_fields)
        raise ValueError(
            f"{kind} {name!r}: option {where!r}: {first['msg']}, got {first['input']!r}; "
            f"its options are {known}"
        ) from None


@cache
def plugin_constant(kind: str, name: str, constant: str) -> Any:
    """Return what the plugin's file says in capitals, such as `CALIBRATED = True`."""
    tree = ast.parse(plugin_path(kind, name).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == constant:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{kind} {name}: {constant} is not set")


def uri_options(kind: str, name: str) -> list[str]:
    """Names of the options that point to files (resolved against the recipe's folder)."""
    fields = options_model(kind, name).model_fields
    return [n for n, field in fields.items() if "uri" in _marks(field)]


def data_options(kind: str, name: str) -> list[str]:
    """Those of `uri_options` that name something else than a file of rows."""
    fields = options_model(kind, name).model_fields
    return [n for n in uri_options(kind, name) if "data" in _marks(fields[n])]


def catalogue_options(kind: str, name: str) -> list[str]:
    """Those of `data_options` that name a catalogue of data sets."""
    fields = options_model(kind, name).model_fields
    return [n for n in data_options(kind, name) if "catalogue" in _marks(fields[n])]


def _marks(field: FieldInfo) -> list[Any]:
    """Return what annotates an option, also where it may be None."""
    inner = (getattr(part, "__metadata__", ()) for part in get_args(field.annotation))
    return [*field.metadata, *chain.from_iterable(inner)]
