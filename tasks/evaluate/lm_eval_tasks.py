"""Tasks of EleutherAI's lm-evaluation-harness, through its library: one unit of work per task.

The harness asks, this project pairs: of each item the metric's value is kept, so that a gate can
compare two models item by item.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.digests import digest_of
from tasks.errors import CompressionError
from tasks.evaluate.task_files import check_task_files, localize_data
from tasks.models.checkpoint import load_model, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tasks.records import DataRef, ModelRef, TextRef
    from tasks.stage_space import StageSpace

BATCH_SIZE = 8


class Harness(NamedTuple):
    """A worker's state."""

    model: Any
    tokenizer: Any
    localize: Callable[[str], Path]
    trust_remote_code: bool


class ItemScores(NamedTuple):
    """What the harness made of one task."""

    values: list[float]
    """The metric of each item."""
    items: str
    """Digest of the items and of what was asked about each."""
    num_fewshot: int
    version: str
    """Of the task."""


def run_lm_eval(
    space: StageSpace,
    options: dict[str, Any],
    model: ModelRef,
    tasks: list[dict[str, Any]],
    data: Mapping[str, TextRef | DataRef],
) -> list[ItemScores]:
    """Run `LmEvalTask`s, as mappings, on one model.

    Args:
        data: The folders that they include, by the task's name.

    Raises:
        CompressionError: lm-eval is not installed, knows no such task, or fails.
    """
    state = partial(load_harness, space.localizer, model.uri, options["trust_remote_code"])
    units = [task | {"include": getattr(data.get(task["name"]), "uri", None)} for task in tasks]
    results = space.compute_units(run_task, units, state, group="lm_eval")
    return [ItemScores(**json.loads(result)) for result in results]


def load_harness(localize: Callable[[str], Path], uri: str, trust_remote_code: bool) -> Harness:
    folder = localize(uri)
    model = load_model(folder, "auto", trust_remote_code)
    return Harness(model, load_tokenizer(folder), localize, trust_remote_code)


def run_task(harness: Harness, task: dict[str, Any]) -> bytes:
    """Run one task; return `ItemScores` as JSON."""
    where = f"evaluation.tasks: {task['name']}: lm_eval: {task['lm_eval']}"
    folder = harness.localize(task["include"]) if task["include"] else None
    if folder and not harness.trust_remote_code:
        check_task_files(folder, where)
    with sandboxed(harness.trust_remote_code):
        try:
            found = ask_harness(harness, task, folder, where)
        except Exception as error:  # whatever the harness, a task or the hub raises
            raise CompressionError(
                f"{where}: lm-eval does not run it ({type(error).__name__}: {error})"
            ) from error
    return json.dumps(found._asdict()).encode()


def ask_harness(
    harness: Harness, task: dict[str, Any], folder: Path | None, where: str
) -> ItemScores:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    asked: str | dict[str, Any] = task["lm_eval"]
    # The index of the harness's own tasks takes seconds, and a task of the user's needs none.
    manager = TaskManager(include_path=folder, include_defaults=False)
    own = manager.task_index.get(task["lm_eval"])
    if folder and own and own.yaml_path:
        asked = localize_data(load_yaml(own.yaml_path), folder, where)
    else:
        manager = TaskManager()
        if task["lm_eval"] not in manager.task_index:
            raise ValueError("there is no such task in the harness or in `include`")
    tested = HFLM(pretrained=harness.model, tokenizer=harness.tokenizer, batch_size=BATCH_SIZE)
    results = simple_evaluate(
        model=tested,
        tasks=[asked],
        num_fewshot=task["num_fewshot"],
        limit=task["limit"],
        bootstrap_iters=0,
        task_manager=manager,
        confirm_run_unsafe_code=harness.trust_remote_code,
    )
    samples = results["samples"]
    if len(samples) != 1:
        raise ValueError(f"it is a group of {len(samples)} tasks; name one of {sorted(samples)}")
    ((name, rows),) = samples.items()
    first_filter = rows[0]["filter"]
    rows = sorted((r for r in rows if r["filter"] == first_filter), key=lambda r: r["doc_id"])
    if not all(isinstance(row.get(task["metric"]), int | float) for row in rows):
        raise ValueError(
            f"metric: expected one with a number for each item, got {task['metric']}; the task "
            f"has {sorted(rows[0]['metrics'])}"
        )
    if results["higher_is_better"][name].get(task["metric"]) is False:
        raise ValueError(
            f"metric: expected one that is better where it is larger, got {task['metric']}"
        )
    return ItemScores(
        values=[float(row[task["metric"]]) for row in rows],
        items=digest_of(
            [[row["doc_hash"], row["prompt_hash"], row["target_hash"]] for row in rows]
        ),
        num_fewshot=results["n-shot"][name],
        version=str(results["versions"][name]),
    )


@contextmanager
def sandboxed(trusted: bool) -> Iterator[None]:
    """Keep the harness from running what a task or the hub brings: no metric scripts from the hub,
    and templates that reach no attribute of Python's."""
    if trusted:
        yield
        return
    os.environ["HF_EVALUATE_OFFLINE"] = "1"
    try:
        from lm_eval import utils
    except ImportError:
        raise CompressionError(
            "evaluation.tasks: lm-eval is not installed", "pip install 'nightpress[lm-eval]'"
        ) from None
    from jinja2.sandbox import SandboxedEnvironment

    before = utils.env
    utils.env = SandboxedEnvironment(undefined=before.undefined, keep_trailing_newline=True)
    utils.env.filters.update(before.filters)
    try:
        yield
    finally:
        utils.env = before
