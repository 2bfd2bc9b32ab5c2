"""Tell a URL something, and do not insist.

A webhook's URL is a secret: whoever has it can post. No message of this module contains it, and a
redirect, which would hand the document to somewhere else, counts as a failure.
"""

import http.client
import json
import time
import urllib.request
from typing import Any
from urllib.error import HTTPError

TIMEOUT_S = 10.0
PAUSE_S = 1.0
"""Between the two attempts."""


def post_json(url: str, document: dict[str, Any], timeout_s: float = TIMEOUT_S) -> str | None:
    """Post a JSON document; once more where the first attempt failed in a way that may pass.

    HTTPS_PROXY and its kin are honoured.

    Returns:
        None where it was accepted (2xx), else what went wrong, without the URL.
    """
    if not url.startswith(("http://", "https://")):
        return "it is not an http:// or https:// URL"
    body = json.dumps(document).encode()
    problem, may_pass = attempt(url, body, timeout_s)
    if may_pass:
        time.sleep(PAUSE_S)
        problem, _ = attempt(url, body, timeout_s)
    return problem


def attempt(url: str, body: bytes, timeout_s: float) -> tuple[str | None, bool]:
    """Return the problem, None where there was none, and whether it may pass by itself."""
    opener = urllib.request.build_opener(NoRedirect)
    headers = {"Content-Type": "application/json", "User-Agent": "nightpress"}
    try:
        asked = urllib.request.Request(url, body, headers, method="POST")
        opener.open(asked, timeout=timeout_s).close()
    except HTTPError as error:
        error.close()
        return f"the server answered {error.code}", error.code >= 500 or error.code == 429
    except (ValueError, http.client.InvalidURL):
        return "it is not an http:// or https:// URL", False
    except (OSError, http.client.HTTPException) as error:
        why = type(getattr(error, "reason", error)).__name__
        return f"there was no answer ({why}, limit {timeout_s:g} s)", True
    return None, False


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leave a redirect as the error that it is; this is how urllib wants to be told."""

    def redirect_request(self, *args: Any) -> None:
        return None
