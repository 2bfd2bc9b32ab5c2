"""The catalogue in a real browser: it filters, sorts, and sticks out nowhere."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.report.catalogue import render_catalogue
from tests.browser.test_report_pages import lay_out
from tests.unit.test_catalogue import make_listing

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

ARTIFACTS = [
    make_listing(export="int4", digest="aa" * 32, num_bytes=9),
    make_listing(export="int8", digest="bb" * 32, num_bytes=1_000, channels=["stable"]),
    make_listing(export="full", digest="cc" * 32, num_bytes=200, channels=[]),
    make_listing(export="corpus", digest="dd" * 32, nats_per_token=None, num_parameters=None),
]

ACT = """
<script>
const shown = () => rows.length && [...body.rows].filter(row => !row.hidden)
  .map(row => row.cells[0].dataset.key.split("/")[1]);
const result = {}, click = column => heads[column].querySelector("button").click();
click(3); result.by_size = shown();
click(3); result.by_size_down = shown();
click(5); result.by_nats = shown();
channel.value = "*"; channel.dispatchEvent(new Event("change")); result.served = shown();
channel.value = "stable"; channel.dispatchEvent(new Event("change")); result.stable = shown();
channel.value = ""; search.value = "docs-lm CC"; search.dispatchEvent(new Event("input"));
result.found = shown(); result.said = document.getElementById("shown").textContent;
const out = document.createElement("pre");
out.id = "result"; out.textContent = JSON.stringify(result); document.body.append(out);
</script>
"""


def act(folder: Path) -> dict[str, Any]:
    page = folder / "catalogue.html"
    page.write_text(render_catalogue(ARTIFACTS, "s3://models") + ACT)
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="result">(.*?)</pre>', dumped, re.DOTALL)
    assert found is not None
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


def test_it_sorts_numbers_as_numbers_and_filters(tmp_path: Path) -> None:
    result = act(tmp_path)
    assert result["by_size"] == ["int4", "full", "int8", "corpus"]
    assert result["by_size_down"] == ["corpus", "int8", "full", "int4"]
    assert result["by_nats"][-1] == "corpus", "what has no number comes last"
    assert sorted(result["served"]) == ["corpus", "int4", "int8"]
    assert result["stable"] == ["int8"] and result["found"] == ["full"]
    assert result["said"] == "1 of 4 shown"


@pytest.mark.parametrize("width", [360, 1300])
def test_it_fits_a_phone_and_a_desk(width: int, tmp_path: Path) -> None:
    result = lay_out(render_catalogue(ARTIFACTS, "s3://models"), width, tmp_path)
    assert result["sticking_out"] == [] and result["content"] <= width
