"""The report in a real browser: nothing sticks out, overlaps or is too small, on phone and desk.

Each page is laid out in a frame of the wanted width, measured by a script in the page around it,
and read back from the dumped document.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.report.catalogue import render_catalogue
from tasks.report.report import write_report
from tests.unit.report_factory import make_report
from tests.unit.test_catalogue import make_listing
from tests.unit.test_report import HOSTILE, poison

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

MEASURE = """
function measure() {
  const frame = document.getElementById("frame"), page = frame.contentDocument;
  const view = frame.contentWindow, seen = element => element.getClientRects().length > 0;
  const box = element => element.getBoundingClientRect();
  const scrolls = element => element.closest(".scroll, pre");
  const texts = [...page.querySelectorAll("svg text")].filter(seen);
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const clashes = [];
  texts.forEach((a, i) => texts.slice(i + 1).forEach(b => {
    if (overlap(box(a), box(b))) clashes.push(a.textContent + " | " + b.textContent);
  }));
  const result = {
    width: view.innerWidth,
    content: page.documentElement.scrollWidth,
    sticking_out: [...page.body.querySelectorAll("*")]
      .filter(e => seen(e) && !scrolls(e) && box(e).right > view.innerWidth + 1)
      .map(e => e.outerHTML.slice(0, 80)),
    cut_off: texts.filter(t => box(t).right > box(t.ownerSVGElement).right + 1 ||
      box(t).left < box(t.ownerSVGElement).left - 1).map(t => t.textContent),
    clashes: clashes,
    smallest_px: Math.min(...texts.map(t => 12 * box(t.ownerSVGElement).width /
      t.ownerSVGElement.viewBox.baseVal.width)),
    narrow_shown: [...page.querySelectorAll(".narrow")].some(seen),
    wide_shown: [...page.querySelectorAll(".wide")].some(seen),
    background: view.getComputedStyle(page.body).backgroundColor,
    ink: view.getComputedStyle(page.body).color,
  };
  const out = document.createElement("pre");
  out.id = "result";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
}
"""


def lay_out(page: str, width: int, folder: Path, *options: str) -> dict[str, Any]:
    """Lay a page out at a width in pixels and return what MEASURE found."""
    frame = f'<iframe id="frame" onload="measure()" width="{width}" height="4000"'
    outer = folder / "outer.html"
    outer.write_text(
        f"<!doctype html><script>{MEASURE}</script>"
        f'{frame} style="border:0" srcdoc="{html.escape(page)}"></iframe>'
    )
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", *options, outer.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="result">(.*?)</pre>', dumped, re.DOTALL)
    assert found is not None
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.parametrize("width", [390, 1300])
@pytest.mark.parametrize("num_layers", [6, 40])
def test_the_page_fits(width: int, num_layers: int, tmp_path: Path) -> None:
    page = write_report(make_report(num_layers=num_layers))
    found = lay_out(page, width, tmp_path)
    assert found["width"] == width
    assert found["content"] <= width
    assert found["sticking_out"] == []
    assert found["cut_off"] == []
    assert found["clashes"] == []
    assert found["smallest_px"] >= 9
    assert (found["narrow_shown"], found["wide_shown"]) == (width == 390, width == 1300)


@pytest.mark.parametrize("kind", ["report", "catalogue"])
def test_no_script_of_a_text_runs(kind: str, tmp_path: Path) -> None:
    venom = "".join(HOSTILE)
    if kind == "report":
        page = write_report(poison(make_report(), venom))
    else:
        page = render_catalogue([poison(make_listing(), venom)], "s3://models" + venom)
    file = tmp_path / "hostile.html"
    file.write_text(page)
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<h1>" in dumped
    assert re.match(r'<!DOCTYPE html><html lang="en"><head>', dumped.replace("\n", "")), dumped[
        :200
    ]


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, WCAG 2.2."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_readable_in_light_and_dark(dark: bool, tmp_path: Path) -> None:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    found = lay_out(write_report(make_report()), 1300, tmp_path, scheme)
    paper, ink = luminance(found["background"]), luminance(found["ink"])
    assert (paper < ink) == dark
    assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 12
