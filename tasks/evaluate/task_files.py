"""Task files of the user's own for lm-eval: found, and refused where they would run code.

What a file can say of code is `!function`, which imports a Python file beside it, and
`hf_evaluate`, which runs a metric's script from the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def check_task_files(folder: Path, where: str) -> None:
    """Make sure that no task file below a folder runs code.

    Raises:
        ValueError: one does, or is no YAML.
    """
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".yaml", ".yml")):
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise ValueError(f"{where}: {path} is not YAML: {error}") from None
        for node in walk(root):
            check_includes(node, path, folder, where)
            if node.tag not in yaml.SafeLoader.yaml_constructors or node.value == "hf_evaluate":
                said = node.value if node.value == "hf_evaluate" else node.tag
                raise ValueError(
                    f"{where}: {path}:{node.start_mark.line + 1} runs Python code ({said}); "
                    "expected a task without it, or teacher.trust_remote_code: true"
                )


def check_includes(node: yaml.Node, path: Path, folder: Path, where: str) -> None:
    """Raises: ValueError: a mapping includes a file from elsewhere, which is not looked at."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for value in (value for key, value in pairs if key.value == "include"):
        for name in [value] if isinstance(value, yaml.ScalarNode) else value.value:
            if not (path.parent / name.value).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{where}: {path} includes {name.value}, which is not in {folder}")


def walk(node: yaml.Node | None) -> Iterator[yaml.Node]:
    if node is not None:
        yield node
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from walk(item)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from walk(key)
            yield from walk(value)


def localize_data(config: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Return a task's config with its local data files found below its folder.

    A task reads files with `dataset_path: json` (or csv, parquet, text) and
    `dataset_kwargs: {data_files: ...}`; relative names are relative to the folder.

    Raises:
        ValueError: a data file is not in the folder, where its digest would enter the key.
    """
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if files is None:
        return config

    def find(name: Any) -> Any:
        if isinstance(name, dict):
            return {key: find(value) for key, value in name.items()}
        if isinstance(name, list):
            return [find(value) for value in name]
        path = (folder / str(name)).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise ValueError(
                f"{where}: data_files: no file {name} in {folder}; a task's data lies in the "
                "folder that `include` names, with a path relative to it"
            )
        return str(path)

    kwargs = config["dataset_kwargs"] | {"data_files": find(files)}
    return config | {"dataset_kwargs": kwargs}
