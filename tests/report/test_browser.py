# SPDX-License-Identifier: Apache-2.0
"""The report in a browser: nothing on the console, no sideways scrolling on a phone, dark and light differ."""

import re
import shutil
import subprocess

import pytest

from patchrec_fast.report import Section, write
from patchrec_fast.report.page import Table
from patchrec_fast.report.plots import Series, plot

pytest.importorskip("matplotlib")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path")

PROBE = """<pre id=probe></pre><script>
const d = document.documentElement, text = document.querySelector("svg text"), box = text.getBoundingClientRect();
document.getElementById("probe").textContent = [innerWidth, d.scrollWidth, getComputedStyle(document.body).color,
  getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill, box.height].join("|");
</script>"""


def look(path, width, dark):
    """(inner width, scroll width, ink, paper, colour and height of the plot's text), and what the console said."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    return found[1].split("|"), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    drawn = plot([Series("a" * 60, [1, 10], [2, 3]), Series("b", [1, 10], [1, 2])], "c", x="x", y="y", log_x=True)
    wide = Table("wide", [f"column {number}" for number in range(30)], [["cell"] * 30] * 3, frozenset({1}))
    made = tmp_path_factory.mktemp("page") / "report.html"
    write(made, "A report of " + "very" * 40, [Section("One", ["text"], [drawn], [wide]), Section("Two", missing="m")])
    made.write_text(made.read_text().replace("</body>", PROBE + "</body>"))
    return made


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_follows_the_theme(path, width):
    shown = {}
    for dark in (False, True):
        (inner, scrolled, ink, paper, drawn, height), console = look(path, width, dark)
        assert console == []
        assert int(scrolled) <= int(inner)
        assert ink == drawn
        assert float(height) >= 9
        shown[dark] = (ink, paper)
    assert shown[False][1] == "rgb(255, 255, 255)"
    assert sum(map(int, re.findall(r"\d+", shown[True][1]))) < 100
    assert sum(map(int, re.findall(r"\d+", shown[True][0]))) > 600
