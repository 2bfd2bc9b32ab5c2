"""YAML that somebody else wrote: plain data of a bounded extent, or an answer why not.

`yaml.safe_load` builds no objects. But it follows some hundred bytes of anchors that stand for a
billion nodes, and of two equal keys it silently takes the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

MAX_BYTES = 2**18
"""Of a file; a long recipe has ten thousand."""
MAX_NODES = 20_000
"""Values and keys, those behind an alias counted wherever the alias stands."""
MAX_DEPTH = 32
MAX_DIGITS = 100
"""Of an integer, however it is written."""
INT_TAG = "tag:yaml.org,2002:int"


def read_yaml(path: Path) -> Any:
    """Return what a file of YAML says.

    Raises:
        ValueError: it is too large, not UTF-8, or `parse_yaml` refuses it.
    """
    num_bytes = path.stat().st_size
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"{path}: expected {MAX_BYTES:,} bytes of YAML at most, got {num_bytes:,}; name files "
            "of text instead of writing their text here"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8, got the byte 0x{error.object[error.start]:02x} at "
            f"{error.start:,}; save it as UTF-8"
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str, max_nodes: int = MAX_NODES) -> Any:
    """Return what a YAML document says; None where it is empty.

    Args:
        origin: Begins the message of an error.

    Raises:
        ValueError: it is not YAML, has tags beyond plain data, a key twice, or more nodes, levels
            or digits than anybody writes.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            measure(root, {}, MAX_DEPTH, max_nodes)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{origin} is not YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{origin}: {too_deep()}") from None
    except (ValueError, OverflowError) as error:  # the 31st of February, too
        raise ValueError(f"{origin}: {error}") from None
    except (LookupError, AttributeError, TypeError):  # what PyYAML makes of `!!timestamp x`
        raise ValueError(f"{origin}: a value does not fit its tag, such as !!bool") from None


class Extent(NamedTuple):
    num_nodes: int
    height: int


def measure(node: yaml.Node, known: dict[int, Extent], depth_left: int, max_nodes: int) -> Extent:
    """Return how large a node is with every alias written out.

    Args:
        known: Extents of the nodes that were measured, by id; they are what makes it quick.

    Raises:
        ValueError: it is too large, or an alias stands within what it names.
    """
    if depth_left <= 0:
        raise ValueError(too_deep())
    if id(node) in known:
        return known[id(node)]
    if isinstance(node, yaml.MappingNode):
        check_keys(node)
    elif node.tag == INT_TAG and len(node.value) > MAX_DIGITS:
        raise ValueError(f"{place(node)}: expected a number, got one of {len(node.value):,} digits")
    num_nodes, height = 1, 0
    for child in children(node):
        extent = measure(child, known, depth_left - 1, max_nodes)
        num_nodes += extent.num_nodes
        height = max(height, extent.height)
    if num_nodes > max_nodes:
        raise ValueError(
            f"{place(node)}: expected {max_nodes:,} values at most, got {num_nodes:,}; what is "
            "written as an alias counts as often as it stands there"
        )
    if height >= depth_left:  # what an alias names was measured where it was less deep
        raise ValueError(too_deep())
    known[id(node)] = Extent(num_nodes, height + 1)
    return known[id(node)]


def children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def check_keys(node: yaml.MappingNode) -> None:
    """Raises: ValueError: a key is there twice."""
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise ValueError(f"{place(key)}: the key {key.value!r} is there twice")
            seen.add(key.value)


def place(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def too_deep() -> str:
    return f"expected {MAX_DEPTH} levels at most; it is nested deeper, or an alias names itself"
