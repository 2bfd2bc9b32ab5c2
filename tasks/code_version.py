"""The code version of a stage: a digest of our own sources that it imports, found as text.

Nothing is imported to find it, so a run whose every key is a hit needs neither torch nor Ray.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "tasks", "kernels", "infra")
LIBRARIES = (
    "torch",
    "transformers",
    "compressed-tensors",
    "bm25s",
    "datasets",
    "datasketch",
    "pyarrow",
    "scikit-learn",
)
"""Libraries whose version may change the bytes that a stage writes."""


def code_version(paths: list[Path]) -> str:
    """Return the sha256 over the given source files, all that they import of ours, and LIBRARIES.

    Imports under `if TYPE_CHECKING:` do not run, so they do not count.
    """
    found: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(imported_files(path))
    lines = [f"{file_digest(p)}  {p.relative_to(ROOT).as_posix()}" for p in sorted(found)]
    lines += [f"{name}=={library_version(name)}" for name in LIBRARIES]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@cache
def imported_files(path: Path) -> tuple[Path, ...]:
    """Return the files of ours that one source file imports, at its top or inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(file for name in imported_names(tree) if (file := module_file(name)))


def imported_names(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported_names(child)


def module_file(name: str) -> Path | None:
    """Return the source file of one of our modules; None for any other name."""
    if name.split(".")[0] not in PACKAGES:
        return None
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.exists() else None


@cache
def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def library_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
