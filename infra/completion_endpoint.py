"""Post to an OpenAI-compatible server: patiently, at a pace, and without a word of its key.

What the server says of an error is not passed on, since it may repeat what it was sent; no
redirect is followed, since that would hand the key to somewhere else.
"""

import http.client
import json
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from infra.webhook import NoRedirect

FIRST_PAUSE_S = 1.0
"""Before the second attempt; each further pause is twice as long."""
LONGEST_PAUSE_S = 60.0
LONGEST_RETRY_AFTER_S = 600.0
"""A server that wants more patience than that is taken to be out of service."""
MAX_ANSWER_BYTES = 64 * 2**20
PASSING = (408, 425, 429, 500, 502, 503, 504, 529)
"""Statuses that may pass by themselves."""


class EndpointError(Exception):
    """The endpoint does not answer, or not in time, or wants no more requests; it may later."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class RefusedError(Exception):
    """The endpoint does not want this very request."""


class PassingError(Exception):
    """One attempt failed in a way that may pass."""

    def __init__(self, problem: str, retry_after_s: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s


class Pace:
    """Lets the threads of this process go one after the other, `interval_s` apart.

    The first waits, too: processes that are started anew do not add up to more.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.next_at = time.monotonic() + interval_s
        self.lock = threading.Lock()

    def wait(self) -> None:
        with self.lock:
            now = time.monotonic()
            at = max(self.next_at, now)
            self.next_at = at + self.interval_s
        time.sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Let nobody go for a while."""
        with self.lock:
            self.next_at = max(self.next_at, time.monotonic() + seconds)


@dataclass
class CompletionEndpoint:
    """A server, and how it is to be asked; lives where it is used, and is never sent on."""

    url: str
    """Base URL, to which `/completions` is appended."""
    key: str | None = field(repr=False)
    timeout_s: float
    """For one attempt, from the request to the answer's last byte."""
    retries: int
    pace: Pace

    def __post_init__(self) -> None:
        """Raises: ValueError: the URL is none that can be used. It is not repeated."""
        expected = "NIGHTPRESS_ENDPOINT: expected a base URL such as http://host:8000/v1"
        self.url = self.url.strip().rstrip("/")
        self.key = self.key and self.key.strip()
        try:
            parts = urlsplit(self.url)
            self.host = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        except ValueError:
            raise ValueError(f"{expected}, got one that cannot be read") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{expected}, got no http:// or https:// URL")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"{expected}, got one with a user or a query; put the key into "
                "NIGHTPRESS_ENDPOINT_KEY"
            )

    def post(self, path: str, document: dict[str, Any]) -> bytes:
        """Post a JSON document until it is answered; return the answer's body.

        Raises:
            EndpointError: it failed as often as it may.
            RefusedError: the server does not want this request.
            ValueError: it does not accept the key, or knows no such path or model.
        """
        body = json.dumps(document).encode()
        pause_s = FIRST_PAUSE_S
        for attempt in range(self.retries + 1):
            self.pace.wait()
            try:
                return self.attempt(path, body)
            except PassingError as error:
                problem = str(error)
                if (error.retry_after_s or 0.0) > LONGEST_RETRY_AFTER_S:
                    problem += f" and asks to wait {error.retry_after_s:.0f} s"
                    break
                if attempt == self.retries:
                    break
                if error.retry_after_s is None:
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                else:
                    self.pace.hold(error.retry_after_s)
        raise EndpointError(
            f"the endpoint at {self.host} {problem}; {attempt + 1} attempts",
            "see that it runs and that NIGHTPRESS_ENDPOINT names it where the workers run; for one "
            "that is slow or limited there are timeout_s, retries and max_requests_per_minute",
        )

    def attempt(self, path: str, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "nightpress"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        opener = urllib.request.build_opener(NoRedirect)
        deadline = time.monotonic() + self.timeout_s
        try:
            asked = urllib.request.Request(f"{self.url}{path}", body, headers, method="POST")
            with opener.open(asked, timeout=self.timeout_s) as answer:
                return read_until(answer, deadline)
        except HTTPError as error:
            error.close()
            raise self.judge(error.code, error.headers.get("Retry-After")) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            slow = isinstance(reason, TimeoutError)
            why = f"within {self.timeout_s:g} s" if slow else f"({type(reason).__name__})"
            raise PassingError(f"gave no answer {why}") from None
        except ValueError:  # says which header it did not like, and that is the key
            raise ValueError(
                "NIGHTPRESS_ENDPOINT_KEY: expected one line of Latin-1 characters"
            ) from None

    def judge(self, status: int, retry_after: str | None) -> Exception:
        """Return what a status other than 2xx means."""
        if status in PASSING:
            return PassingError(f"answered {status}", parse_retry_after(retry_after))
        if status in (401, 403):
            return ValueError(
                f"the endpoint at {self.host} answered {status}; expected NIGHTPRESS_ENDPOINT_KEY "
                "to be a key that it accepts, where the workers run"
            )
        if status == 404 or status < 400:
            return ValueError(
                f"the endpoint at {self.host} answered {status}; expected NIGHTPRESS_ENDPOINT to "
                "be its final base URL, mostly with /v1 at the end, and model one that it serves"
            )
        return RefusedError(f"the endpoint refused the request ({status})")


def read_until(answer: Any, deadline: float) -> bytes:
    """Read a body. Raises: TimeoutError: it comes too slowly. HTTPException: cut, or too large."""
    data = bytearray()
    while chunk := answer.read1(1 << 16):
        data += chunk
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(data) > MAX_ANSWER_BYTES:
            raise http.client.HTTPException("too large")
    if answer.length:  # what Content-Length promised beyond this
        raise http.client.IncompleteRead(bytes(data))
    return bytes(data)


def parse_retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date (RFC 9110)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
