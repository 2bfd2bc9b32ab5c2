"""A stage's space on a folder, with the work done in this process."""

from pathlib import Path

from infra.local_executor import LocalExecutor
from infra.storage import FileStore, Store
from tasks.stage_space import Executor, Progress, StageSpace


def make_space(
    store: Store | Path,
    scratch: Path,
    prefix: str = "stages/prune/key",
    attempt: str = "attempt",
    executor: Executor | None = None,
    progress: Progress = lambda done, total: None,
) -> StageSpace:
    return StageSpace(
        store=FileStore(f"file://{store}") if isinstance(store, Path) else store,
        executor=executor or LocalExecutor(),
        prefix=prefix,
        attempt=attempt,
        scratch=scratch,
        progress=progress,
    )
