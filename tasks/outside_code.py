"""Functions of the user's own, named `package.module:function`: found, digested, imported.

Finding and digesting read the source as text, so a typo is answered, and a stage's key known,
without importing anything but what Python imports to find a top-level name.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from tasks.code_version import imported_names
from tasks.digests import digest_file, digest_of


def is_outside(name: str) -> bool:
    """Say whether a name means a function of the user's own and not a plugin."""
    return ":" in name


def source_digest(name: str) -> str:
    """Return the sha256 over the sources that the function's results may depend on.

    They are all of its package; of a module that lies in no package, the module and what it
    imports from beside it.

    Raises:
        ValueError: there is no such module.
    """
    path, package = find_source(name)
    files = package.rglob("*.py") if package else _beside(path)
    root = package or path.parent
    return digest_of({f.relative_to(root).as_posix(): digest_file(f) for f in files})


def find_source(name: str) -> tuple[Path, Path | None]:
    """Return the module's file, and the folder of its top-level package where it has one.

    Raises:
        ValueError: there is no such module.
    """
    module, _, function = name.partition(":")
    parts = module.split(".")
    if not all(part.isidentifier() for part in [*parts, function]):
        raise ValueError(f"{name!r} must read package.module:function")
    top = spec = importlib.util.find_spec(parts[0])
    for count in range(2, len(parts) + 1):
        spec = _find_within(spec, ".".join(parts[:count]))
    if top is None or spec is None or not (spec.origin or "").endswith(".py"):
        raise ValueError(
            f"{name}: there is no Python module {module}; install it or put its folder on "
            "PYTHONPATH, here and on every worker"
        )
    folders = top.submodule_search_locations
    return Path(str(spec.origin)), Path(folders[0]) if folders else None


def _find_within(package: ModuleSpec | None, name: str) -> ModuleSpec | None:
    if package is None or package.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, package.submodule_search_locations)


def _beside(path: Path) -> set[Path]:
    """Return a lone module's file and, recursively, what it imports from the same folder."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for name in imported_names(ast.parse(file.read_text(encoding="utf-8"))):
            neighbour = path.parent / name.partition(".")[0]
            if neighbour.with_suffix(".py").exists():
                waiting.append(neighbour.with_suffix(".py"))
            elif neighbour.is_dir():
                found.update(neighbour.rglob("*.py"))
    return found


def import_function(name: str) -> Callable[..., Any]:
    """Import the function.

    Raises:
        ValueError: it does not import; the message says why.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(
            f"{name} does not import ({type(error).__name__}: {error}); mend it, or install it "
            "and what it needs here and on every worker"
        ) from error
    if not callable(found):
        raise ValueError(f"{name} must be a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]
