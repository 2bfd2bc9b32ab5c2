"""llama.cpp by way of node-llama-cpp's prebuilt libraries, in a process of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

FOLDER = "NIGHTPRESS_LLAMA_CPP"
"""Names a folder in which `npm install node-llama-cpp --ignore-scripts` has run."""
PROGRAM = Path(__file__).with_suffix(".mjs")
TIMEOUT_S = 600


def why_not() -> str | None:
    """Return why llama.cpp cannot be asked; None where it can."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return f"{FOLDER} names no folder with node-llama-cpp in it"
    if not (Path(folder) / "node_modules/node-llama-cpp").is_dir():
        return f"{folder} holds no node_modules/node-llama-cpp"
    return None


def ask_llama_cpp(file: Path, **request: Any) -> dict[str, Any]:
    """Ask about a GGUF file; the program says what can be asked."""
    ran = subprocess.run(
        ["node", PROGRAM, os.environ[FOLDER], file],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if ran.returncode != 0:
        raise RuntimeError(f"llama.cpp cannot use {file}: {ran.stderr.strip()[-2000:]}")
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer
