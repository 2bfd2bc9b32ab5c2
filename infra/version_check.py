"""Whether the libraries here are those that this project was tested with."""

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from infra.findings import Finding

PINS = Path(__file__).parent.parent / "constraints.txt"
NAMED = ("torch", "transformers", "deepspeed", "ray", "prefect")
"""What nights run on: a stage's bytes, or whether it ends, may depend on these."""
REMEDY = "pip install --constraint constraints.txt --editable ."


def check_versions() -> list[Finding]:
    """Return one finding on Python and the main libraries, and one on each wrong requirement."""
    here = installed_versions()
    said = ", ".join(f"{name} {found}" for name, found in here.items())
    tested = tested_versions()
    others = [
        f"{name} {found} (tested with {tested[name]})"
        for name, found in here.items()
        if name in tested and not is_release(found, tested[name])
    ]
    if others:
        findings = [Finding("warning", "versions", ", ".join(others), REMEDY)]
    else:
        findings = [Finding("ok", "versions", said)]
    unmet = unmet_requirements()
    return [*findings, *(Finding("error", "versions", problem, REMEDY) for problem in unmet)]


def installed_versions() -> dict[str, str]:
    """Return the versions by name, Python's first; `none` stands for what is absent."""
    return {"python": ".".join(map(str, sys.version_info[:3]))} | {
        name: installed(name) or "none" for name in NAMED
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tested_versions() -> dict[str, str]:
    """Return what constraints.txt pins; of Python, the minor version."""
    text = PINS.read_text() if PINS.exists() else ""
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE)) | {"python": "3.11"}


def is_release(found: str, tested: str) -> bool:
    """Whether a version is another one's build, such as 2.13.0+cpu, or a patch of it."""
    return found == tested or found.startswith((f"{tested}+", f"{tested}."))


def unmet_requirements() -> list[str]:
    """Return what pip would complain of, among what this project says that it needs."""
    problems = []
    for line in requires("nightpress") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        found = installed(needed.name)
        if found is None:
            problems.append(f"{needed.name} is not installed")
        elif not needed.specifier.contains(found, prereleases=True):
            problems.append(f"{needed.name}{needed.specifier} is needed, {found} is installed")
    return problems
