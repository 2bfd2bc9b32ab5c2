import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local_executor import LocalExecutor
from infra.ray_cluster import RayExecutor
from infra.ray_session import worker_environment
from tasks.corpus.context import CorpusContext
from tasks.corpus.generation import Prompt, generate
from tasks.corpus.generators import endpoint
from tasks.corpus.generators.teacher import load_writer
from tasks.stage_space import Executor
from tests.unit.completion_server import Fault, Request, running_server
from tests.unit.stage_space import make_space

pytestmark = pytest.mark.integration

KEY = "sk-a-secret-that-nobody-may-read"
PROMPTS = [Prompt(f"the model learns number {i}", seed=i, max_tokens=8) for i in range(12)]


@pytest.fixture
def ray_executor(tmp_path: Path) -> Iterator[RayExecutor]:
    executor = RayExecutor("local", 2, 0, 1, tmp_path / "ray")
    yield executor
    executor.close()


def ask(executor: Executor, folder: Path) -> tuple[list[object], CorpusContext]:
    context = CorpusContext(make_space(folder, folder, executor=executor), seed=0, name="source")
    context.generator = endpoint.connect(context, model="tiny", batch_prompts=2, timeout_s=60.0)
    return list(generate(context, PROMPTS, "group")), context


def test_workers_read_the_key_themselves_and_may_die(
    tiny_llama: Path,
    tmp_path: Path,
    ray_executor: RayExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One worker is killed while it waits for an answer; its batch alone is asked for again."""
    monkeypatch.setenv("NIGHTPRESS_ENDPOINT_KEY", KEY)
    pids: list[int] = []

    def kill_once(request: Request) -> Fault | None:
        if request.number == 5:
            ours = psutil.Process().children(recursive=True)
            workers = [process for process in ours if "ray::Worker.run" in process.cmdline()[:1]]
            pids.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)
        return None

    with running_server(load_writer(Path, str(tiny_llama), False), kill_once) as server:
        monkeypatch.setenv("NIGHTPRESS_ENDPOINT", server.url)
        found, context = ask(ray_executor, tmp_path / "ray-store")
        asked = len(server.requests)
        alone, _ = ask(LocalExecutor(), tmp_path / "local-store")
    assert found == alone and context.spent["requests"] == len(PROMPTS)
    assert {request.key for request in server.requests} == {f"Bearer {KEY}"}
    assert len(pids) == 1 and asked <= len(PROMPTS) + 2
    assert KEY not in str(worker_environment("local", 1, 0))
