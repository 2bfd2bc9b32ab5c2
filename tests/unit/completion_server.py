"""A server with OpenAI's HTTP interface around a small real model, which fails when it is told."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tasks.corpus.decoding import Writer
from tasks.corpus.generation import Prompt
from tasks.corpus.generators.teacher import write


class Fault(NamedTuple):
    """What is done instead of a proper answer."""

    status: int = 200
    body: bytes | None = None
    """None answers properly, after `delay_s`."""
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    cut: bool = False
    """Half the body is sent."""


class Request(NamedTuple):
    path: str
    document: dict[str, Any]
    key: str | None
    number: int
    """How many requests came before."""


@dataclass
class CompletionServer:
    url: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def running_server(
    writer: Writer, fault: Callable[[Request], Fault | None] = lambda request: None
) -> Iterator[CompletionServer]:
    """Yield a server on a free port of the loopback; `fault` says what happens to each request."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                key = self.headers.get("Authorization")
                request = Request(self.path, document, key, len(server.requests))
                server.requests.append(request)
            chosen = fault(request) or Fault()
            time.sleep(chosen.delay_s)
            body = chosen.body
            if body is None:
                with lock:
                    body = json.dumps(answer(writer, request)).encode()
            self.send_response(chosen.status)
            for name, value in chosen.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if chosen.cut else body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the client did not wait
                self.close_connection = True

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = CompletionServer(f"http://127.0.0.1:{http.server_address[1]}/v1")
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def answer(writer: Writer, request: Request) -> dict[str, Any]:
    """Complete what a request asks for, as OpenAI's interface says it."""
    asked = request.document
    chat = request.path.endswith("/chat/completions")
    text = asked["messages"][0]["content"] if chat else asked["prompt"]
    prompt = Prompt(
        text,
        asked["seed"],
        asked["max_tokens"],
        asked["temperature"],
        tuple(asked.get("stop", ())),
        raw=not chat,
    )
    (completion,) = write(writer, [prompt])
    said = (
        {"message": {"role": "assistant", "content": completion.text}}
        if chat
        else {"text": completion.text}
    )
    reason = "stop" if completion.finished else "length"
    return {
        "model": asked["model"],
        "choices": [{"index": 0, "finish_reason": reason} | said],
        "usage": {
            "prompt_tokens": completion.num_prompt_tokens,
            "completion_tokens": completion.num_completion_tokens,
        },
    }
