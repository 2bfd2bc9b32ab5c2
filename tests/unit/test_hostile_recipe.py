"""Recipes that somebody else wrote: read, or answered with exit 2 and why; nothing is written."""

import copy
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import command_line
from tasks.publish.names import NAME
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe

GOOD: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "teacher": {"model": "acme/teacher"},
    "calibration": {"text": "a.jsonl", "num_windows": 8},
    "evaluation": {"text": "b.jsonl", "window": 32},
    "corpus": {"sources": [{"name": "local_text", "options": {"path": "c.jsonl"}}]},
    "steps": [{"prune": {"sparsity": {"ffn": 0.5}}}],
    "exports": [
        {"name": "int8", "method": "absmax", "format": "compressed-tensors", "options": {"bits": 8}}
    ],
    "gate": {"teacher": {"max_nats_increase": 0.3}},
    "publish": {"channel": "nightly"},
}

VALUES = st.one_of(
    st.sampled_from(
        [
            *(None, True, "", "..", "../../etc/passwd", "/etc/passwd", "a\\b", "C:\\x", "nul\0"),
            *("\u202e", "e\u0301", "a\n", "A", "a" * 64, "x" * 50_000, "<script>", "\x1b[2J"),
            *(-1, 10**30, 2**63, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324),
            *(b"\xff\x00", date(2026, 1, 1), {1, 2}, [], {}, {1: 2}, {None: 3}, {(1, 2): 4}),
            *([[[[[[[[1]]]]]]]], {"a": {"b": {"c": {}}}}, [None] * 1000, "os:system", "!!python"),
        ]
    ),
    st.text(max_size=20),
    st.floats(),
    st.integers(),
)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


NUM_PLACES = len(list(places(GOOD)))
CHANGES = st.lists(
    st.tuples(
        st.integers(0, NUM_PLACES - 1), st.sampled_from(["set", "drop", "rename", "add"]), VALUES
    ),
    min_size=1,
    max_size=2,
)


def change(raw: Any, number: int, verb: str, value: Any) -> None:
    found = list(places(raw))
    container, key = found[number % len(found)]
    if verb == "set":
        container[key] = value
    elif verb == "drop":
        del container[key]
    elif isinstance(container, dict):
        new = value if isinstance(value, str | int | float | bytes | None) else str(value)
        container[new] = container.pop(key) if verb == "rename" else value


def read(data: bytes) -> Recipe | str:
    """Return what a file of these bytes comes to; check that reading it wrote nothing."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.yaml"
        path.write_bytes(data)
        try:
            recipe: Recipe | str = load_recipe(path)
        except ValueError as error:
            recipe = str(error)
            assert recipe and len(recipe) < 100_000
            assert "Traceback" not in recipe
        assert list(Path(name).iterdir()) == [path]
    if isinstance(recipe, Recipe):
        keys = [recipe.name, recipe.publish.channel, *(export.name for export in recipe.exports)]
        assert all(re.fullmatch(NAME, key) for key in keys)
        assert all(math.isfinite(number) for number in numbers(recipe.model_dump()))
    return recipe


def numbers(node: Any) -> Iterator[float]:
    if isinstance(node, int | float):
        yield node
    elif isinstance(node, dict | list | tuple):
        for child in node.values() if isinstance(node, dict) else node:
            yield from numbers(child)


def test_the_recipe_that_is_changed_below_is_a_good_one() -> None:
    assert isinstance(read(yaml.safe_dump(GOOD).encode()), Recipe)


@settings(max_examples=700, deadline=None)
@given(CHANGES)
def test_any_value_anywhere(changes: list[tuple[int, str, Any]]) -> None:
    raw = copy.deepcopy(GOOD)
    for number, verb, value in changes:
        if list(places(raw)):
            change(raw, number, verb, value)
    read(yaml.safe_dump(raw, allow_unicode=True).encode())


SNIPPETS = st.sampled_from(
    [
        *(b"name: tiny\n", b"seed: ", b"- ", b"  ", b"&a ", b"*a", b"<<: *a\n", b"{", b"}", b"["),
        *(
            b"]",
            b",",
            b": ",
            b"? ",
            b"|\n",
            b">-\n",
            b"!!python/name:os.system ",
            b"!!set ",
            b"!x ",
        ),
        *(b"!!python/object/apply:os.system ['touch pwned']\n", b"!!binary ", b"!!timestamp "),
        *(b"0x" + b"f" * 200, b"1" * 5000, b"1:2:3", b".nan", b"-.inf", b"2026-02-31", b"~", b"'"),
        *(
            b'"\\ud800"',
            b'"\\0"',
            b"\t",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\xfe\xff\0a",
            b"---\n",
            b"...\n",
        ),
        *(b"%YAML 9.9\n", b"#", b"exports: ", b"steps: ", b"true", b"on: ", b"\x85", b"\0"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(SNIPPETS | st.binary(max_size=6), max_size=12).map(b"".join))
def test_any_bytes(data: bytes) -> None:
    assert isinstance(read(data), str)


def test_a_path_too_long_is_told() -> None:
    said = read(yaml.safe_dump(GOOD | {"teacher": {"model": "x" * 5000}}).encode())
    assert isinstance(said, str) and "cannot be looked at" in said and len(said) < 1000


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
MERGED = "a0: &a0 {x0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30)
)
HOSTILE = {
    "a tag that calls": ("!!python/object/apply:os.system ['touch pwned']", "could not determine"),
    "a tag in a value": ("name: !!python/name:os.system x", "could not determine"),
    "a billion laughs": (LAUGHS, "counts as often as it stands there"),
    "a billion merged laughs": (MERGED, "counts as often as it stands there"),
    "an alias of itself": ("name: tiny\nsteps: &a [*a]", "an alias names itself"),
    "deep lists": ("steps: " + "[" * 10_000, "nested deeper"),
    "deep mappings": ("{a: " * 10_000, "nested deeper"),
    "many values": ("steps: [" + "1," * 21_000 + "]", "20,000 values at most"),
    "a key twice": ("name: tiny\nname: other", "the key 'name' is there twice"),
    "digits": (f"seed: {'9' * 5000}", "one of 5,000 digits"),
    "hexadecimal digits": (f"seed: 0x{'f' * 5000}", "one of 5,002 digits"),
    "a date that is none": ("name: 2026-02-31", "day is out of range"),
    "a tag that is no date's": ("name: !!timestamp x", "does not fit its tag"),
    "a tag that is no truth's": ("name: !!bool x", "does not fit its tag"),
    "a tag without a value": ("name: !!int ''", "does not fit its tag"),
    "a list": ("- name: tiny", "must hold a mapping"),
    "nothing": ("", "must hold a mapping"),
    "keys that are no text": ("1: 2\nnull: 3\n2026-01-01: 4", "recipe"),
    "many errors": (f"exports: [{', '.join(['{}'] * 200)}]", "more"),
    "an unknown unbounded number": ("gate: {teacher: {max_nats_increase: .nan}}", "finite"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_told_and_ends_in_exit_2(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, told = HOSTILE[name]
    (tmp_path / "recipe.yaml").write_text(text)
    assert refused(tmp_path, monkeypatch, capsys, told)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"name: tiny\n# \xe9", "expected UTF-8, got the byte 0xe9 at 13"),
        (b"\xff\xfen\0a\0m\0e\0", "expected UTF-8"),
        (b"name: tiny\0", "is not YAML"),
        (b"name: tiny\n" + b"# " * 200_000, "262,144 bytes of YAML at most, got 400,011"),
    ],
)
def test_what_is_no_text_is_told(
    data: bytes,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(data)
    assert refused(tmp_path, monkeypatch, capsys, told)


def test_a_file_of_100_mb_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "recipe.yaml").open("wb") as file:
        file.truncate(100 * 10**6)
    assert refused(tmp_path, monkeypatch, capsys, "got 100,000,000")


def refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: str
) -> bool:
    """Run the command on a folder's recipe.yaml; say whether it told that, and wrote nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NIGHTPRESS_HOME", raising=False)
    monkeypatch.setattr(sys, "argv", ["nightpress", "plan", "recipe.yaml"])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its handlers
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2, err
    assert err.startswith("nightpress: ") and "Traceback" not in err and out == ""
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]
    assert len(err) < 10_000
    return told in err


@pytest.mark.parametrize("override", ["seed=[", "seed=!!python/name:os.system", "name=*a"])
def test_overrides_are_read_as_carefully(override: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(path, [override])
