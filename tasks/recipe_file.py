"""Read a recipe: YAML, overrides, checks, and messages that say where and what would be right."""

from __future__ import annotations

from pathlib import Path
from reprlib import Repr
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tasks.recipe import Recipe
from tasks.recipe_resolution import resolve
from tasks.safe_yaml import parse_yaml, read_yaml

MAX_LINES = 20
"""Of what is wrong, one line for each."""
MAX_CHARACTERS = 10_000
"""Of a message, whatever it quotes."""
SHORT = Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 120


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, apply `a.b=value` overrides (values are YAML), and check everything in it.

    Relative paths become absolute, against the recipe's folder; plugins' options are filled in.

    Raises:
        ValueError: what is wrong, where, and what would be right.
    """
    if not path.is_file():
        raise ValueError(f"no recipe at {path}; `nightpress init` writes one")
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(raw).__name__}")
    for override in overrides or []:
        set_value(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
        return resolve(recipe, path.parent.resolve())
    except ValidationError as error:
        raise ValueError(describe(error, path)) from None
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[:MAX_CHARACTERS]}") from None
    except OSError as error:  # a name that is too long, a folder that may not be entered
        said = f"{SHORT.repr(error.filename)}: {error.strerror}"
        raise ValueError(f"{path}: a path in it cannot be looked at, {said}") from None


def set_value(raw: dict[str, Any], override: str) -> None:
    """Apply one `--set a.b.0.c=value` to the parsed YAML, in place."""
    dotted, sign, text = override.partition("=")
    if not sign:
        raise ValueError(f"--set {override!r}: expected KEY=VALUE, for example --set seed=1")
    *parents, last = dotted.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, dotted)]
        else:
            node = node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ValueError(f"--set {dotted}: {part!r} holds {SHORT.repr(node)}, not a mapping")
    value = parse_yaml(text, f"--set {dotted}")
    node[_index(node, last, dotted) if isinstance(node, list) else last] = value


def _index(node: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"--set {dotted}: expected an index below {len(node)}, got {part!r}")
    return int(part)


def describe(error: ValidationError, path: Path) -> str:
    """Turn pydantic's findings into lines of: where, what was expected, what was got."""
    lines = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"])
        message = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":
            message = f"unknown key; known here: {', '.join(known_keys(found['loc'][:-1]))}"
        elif not isinstance(found["input"], dict | list):
            message = f"{message}, got {SHORT.repr(found['input'])}"
        lines.append(f"{path}: {where or 'recipe'}: {message}")
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"{path}: and {len(lines) - MAX_LINES} more"]
    return "\n".join(lines)


def known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Keys that the recipe knows at a place, found by walking the models' annotations."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int) or part not in getattr(model, "model_fields", {}):
            continue
        model = _inner_model(model.model_fields[part].annotation, location)
    return sorted(getattr(model, "model_fields", {}))


def _inner_model(annotation: Any, location: tuple[int | str, ...]) -> Any:
    """Return the model that an annotation names; of several, the one whose `kind`, or whose own
    name, is on the way."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [m for part in get_args(annotation) if (m := _inner_model(part, location))]
    kinds = [getattr(model.model_fields.get("kind"), "annotation", None) for model in inner]
    named = [m for m, kind in zip(inner, kinds, strict=True) if {*get_args(kind)} & {*location}]
    named += [m for m in inner if m.__name__ in location]
    return next(iter(named or inner), None)
