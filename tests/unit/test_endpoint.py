import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from email.utils import formatdate
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest

from infra import completion_endpoint
from infra.completion_endpoint import CompletionEndpoint, Pace, parse_retry_after
from infra.storage import open_store
from tasks.corpus.context import CorpusContext
from tasks.corpus.decoding import Writer
from tasks.corpus.generation import Prompt, generate
from tasks.corpus.generators import endpoint
from tasks.corpus.generators.teacher import load_writer, write
from tasks.corpus_stages import source_stage
from tasks.errors import ClusterError
from tasks.inputs import find_inputs
from tasks.recipe_file import load_recipe
from tests.unit.completion_server import CompletionServer, Fault, Request, running_server
from tests.unit.stage_space import make_space

KEY = "sk-a-secret-that-nobody-may-read"
PROMPTS = [Prompt(f"the model learns number {i}", seed=i, max_tokens=8) for i in range(6)]

Serve = Callable[..., AbstractContextManager[CompletionServer]]


@pytest.fixture(scope="module")
def writer(tiny_llama: Path) -> Writer:
    return load_writer(Path, str(tiny_llama), False)


@pytest.fixture
def serve(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(completion_endpoint, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NIGHTPRESS_ENDPOINT_KEY", KEY)
    return partial(running_server, writer)


def ask(
    server: CompletionServer | str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[Prompt] = PROMPTS,
    **options: Any,
) -> tuple[list[Any], CorpusContext]:
    url = server if isinstance(server, str) else server.url
    monkeypatch.setenv("NIGHTPRESS_ENDPOINT", url)
    context = CorpusContext(make_space(folder / "store", folder), seed=0, name="source")
    settings = {"model": "tiny", "timeout_s": 5.0, "retries": 2, "batch_prompts": 4}
    context.generator = endpoint.connect(context, **(settings | options))
    return generate(context, prompts, "group"), context


def only_first(fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: fault if request.number == 0 else None


@pytest.mark.parametrize("chat", [True, False])
def test_an_endpoint_writes_as_its_model_does(
    chat: bool, serve: Serve, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        found, context = ask(server, tmp_path, monkeypatch, chat=chat)
    alone = [write(writer, [prompt._replace(raw=not chat)])[0] for prompt in PROMPTS]
    assert [list(completion) for completion in found] == [list(c) for c in alone]
    assert context.spent["requests"] == 6 and context.spent["completion_tokens"] > 0
    path = "/v1/chat/completions" if chat else "/v1/completions"
    assert {(r.path, r.key) for r in server.requests} == {(path, f"Bearer {KEY}")}


def test_what_is_stored_is_not_asked_again(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda request: Fault(500, b"") if request.number >= 4 else None) as server:
        options = {"retries": 0, "concurrent_requests": 1}
        with pytest.raises(ClusterError, match="answered 500"):
            ask(server, tmp_path, monkeypatch, **options)
    with serve() as server:
        found, _ = ask(server, tmp_path, monkeypatch)
    assert len(server.requests) == 2 and all(c.text for c in found)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, b"", (("Retry-After", "0.3"),)),
        Fault(500, b"oops"),
        Fault(503, b"", (("Retry-After", formatdate(time() - 60, usegmt=True)),)),
        Fault(cut=True),
    ],
    ids=["rate limit", "error", "busy until a date", "cut"],
)
def test_what_may_pass_is_tried_again(
    fault: Fault, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(only_first(fault)) as server:
        began = monotonic()
        found, context = ask(server, tmp_path, monkeypatch, PROMPTS[:1])
    assert found[0].text and not context.refused and len(server.requests) == 2
    assert fault.status != 429 or monotonic() - began >= 0.3


def test_a_slow_server_is_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = r"no answer within 0.1 s; 2 attempts\n.*timeout_s"
    slow = Fault(delay_s=0.5)
    with serve(lambda request: slow) as server, pytest.raises(ClusterError, match=why):
        ask(server, tmp_path, monkeypatch, PROMPTS[:1], timeout_s=0.1, retries=1)


def test_a_server_that_asks_for_too_much_patience_is_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(429, b"", (("Retry-After", "86400"),))
    why = "answered 429 and asks to wait 86400 s; 1 attempt"
    with serve(lambda request: fault) as server, pytest.raises(ClusterError, match=why):
        ask(server, tmp_path, monkeypatch, PROMPTS[:1])


def test_a_server_that_is_down_is_named(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        pass
    host = server.url.removeprefix("http://").removesuffix("/v1")
    with pytest.raises(ClusterError, match=rf"{host} gave no answer \(ConnectionRefused") as caught:
        ask(server, tmp_path, monkeypatch, PROMPTS[:1])
    assert "NIGHTPRESS_ENDPOINT" in str(caught.value) and KEY not in repr(caught.getrepr())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "malformed answer: not JSON"),
        (b"[" * 100_000, "malformed answer: not JSON"),
        (b"[]", "malformed answer: no JSON object"),
        (b'{"choices": []}', "malformed answer: no choices"),
        (b'{"choices": [{"message": null}]}', "malformed answer: no text"),
        (b'{"choices": [{"message": {"content": 7}}]}', "malformed answer: no text"),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', "malformed answer: no text"),
        (
            b'{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}',
            "held back by the endpoint",
        ),
        (
            json.dumps({"choices": [{"message": {"content": f"it is {KEY}"}}]}).encode(),
            "malformed answer: it repeats the key",
        ),
    ],
)
def test_malformed_answers_are_refused_and_counted(
    body: bytes, reason: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda r: Fault(body=body) if r.document["seed"] == 2 else None) as server:
        found, context = ask(server, tmp_path, monkeypatch, PROMPTS[:3])
    assert context.refused == {reason: 1} and found[2].refused == reason
    assert all(completion.text for i, completion in enumerate(found) if i != 2)
    stored = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert KEY.encode() not in stored
    assert found[2].num_completion_tokens == 8  # as many as it may have written


def test_a_refused_prompt_costs_nothing_but_its_row(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(lambda r: Fault(400, KEY.encode()) if r.document["seed"] == 1 else None) as server:
        found, context = ask(server, tmp_path, monkeypatch)
    assert context.refused == {"the endpoint refused the request (400)": 1}
    assert found[1].num_prompt_tokens == 0 and len(server.requests) == 6


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "NIGHTPRESS_ENDPOINT_KEY"), (404, "/v1"), (307, "final base URL")]
)
def test_a_wrong_setting_is_said_at_once(
    status: int, remedy: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(status, f"wrong: {KEY}".encode(), (("Location", "http://127.0.0.1:1/"),))
    with serve(lambda r: fault) as server, pytest.raises(ValueError, match=remedy) as caught:
        ask(server, tmp_path, monkeypatch, PROMPTS[:1])
    assert len(server.requests) == 1 and KEY not in repr(caught.getrepr(showlocals=False))


@pytest.mark.parametrize(
    "url", ["host:8000/v1", "ftp://host/v1", f"http://user:{KEY}@host/v1", "http://[::1", "http://"]
)
def test_a_url_that_is_none_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="NIGHTPRESS_ENDPOINT: expected a base URL") as caught:
        CompletionEndpoint(url, None, 1.0, 0, Pace(0.0))
    assert KEY not in str(caught.value)


def test_a_key_that_no_header_can_hold_is_not_repeated(serve: Serve) -> None:
    with serve() as server:
        asked = CompletionEndpoint(server.url, f"{KEY}\nand more", 1.0, 0, Pace(0.0))
        with pytest.raises(ValueError, match="NIGHTPRESS_ENDPOINT_KEY: expected") as caught:
            asked.post("/completions", {})
    assert KEY not in str(caught.value) and KEY not in repr(asked)


def test_an_endpoint_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIGHTPRESS_ENDPOINT", raising=False)
    with pytest.raises(ValueError, match="set NIGHTPRESS_ENDPOINT"):
        ask("", tmp_path, monkeypatch, PROMPTS[:1])


def test_a_budget_is_reckoned_before_asking(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = sum(prompt.most_tokens for prompt in PROMPTS[:2])
    with serve() as server:
        found, context = ask(server, tmp_path, monkeypatch, token_budget=budget)
        assert len(server.requests) == 2
        assert context.refused == {f"past the budget of {budget} tokens": 4}
        assert context.spent["prompt_tokens"] + context.spent["completion_tokens"] < budget
        assert [bool(completion.refused) for completion in found] == [False] * 2 + [True] * 4
        # What is left of the worst case is there for the next group.
        more = generate(context, PROMPTS[2:3], "next")
    assert more[0].refused is None


def test_requests_keep_their_pace(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        began = monotonic()
        ask(server, tmp_path, monkeypatch, PROMPTS[:4], max_requests_per_minute=600.0)
    assert monotonic() - began >= 0.4


def test_patience_does_not_enter_the_key(
    recipe_file: Path, text_file: Path, tmp_path: Path
) -> None:
    source = [{"name": "continuations", "options": {"seeds": str(text_file)}}]
    store = open_store(f"file://{tmp_path}/store")

    def key(**options: Any) -> str:
        generator = {"name": "endpoint", "options": {"model": "m"} | options}
        overrides = {"sources": source, "generator": generator}
        said = [f"corpus.{name}={json.dumps(value)}" for name, value in overrides.items()]
        recipe = load_recipe(recipe_file, said)
        inputs = find_inputs(recipe, store)
        stage = source_stage(recipe, 1, inputs.teacher, inputs.sources[0])
        whole = (stage.options | stage.execution)["generator"]["options"]
        assert whole["timeout_s"] == options.get("timeout_s", 120.0)
        return stage.key

    assert key() == key(timeout_s=900.0, retries=9) != key(token_budget=1000)


def test_no_beams_from_an_endpoint(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server, pytest.raises(ValueError, match="beam needs the generator teacher"):
        ask(server, tmp_path, monkeypatch, [PROMPTS[0]._replace(num_beams=2)])


def test_retry_after_is_a_number_or_a_date() -> None:
    assert parse_retry_after("7") == 7.0 and parse_retry_after("-1") == 0.0
    later = parse_retry_after(formatdate(time() + 30, usegmt=True))
    assert later is not None and 25 < later <= 30
    assert parse_retry_after("soon") is None and parse_retry_after(None) is None
