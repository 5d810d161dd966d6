"""A real JupyterLab in headless Chromium: opens the series, runs the playground from the menu, uses
its controls.

Screenshots stay in build/browser. Skipped where no Chromium is installed (CCLKIT_CHROMIUM names one
elsewhere).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import browser
import nbformat
import pytest
from conftest import write_plane_scene

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "browser"
TOKEN = "0" * 16

pytestmark = pytest.mark.skipif(
    browser.find() is None,
    reason="no Chromium found; install chromium, or name one in CCLKIT_CHROMIUM",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab on a copy of the notebooks; the playground's works on the
    tiny scene.
    """
    folder = tmp_path_factory.mktemp("lab")
    scene = write_plane_scene(folder, n_views=4)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    path = folder / "notebooks" / "08_playground.ipynb"
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            assert 'scene: str = ""' in cell.source
            cell.source = cell.source.replace('scene: str = ""', f"scene: str = {str(scene)!r}")
    nbformat.write(nb, path)
    # all cells stay in the page, so that the test can find them without scrolling; nothing asks
    # about news
    for name, values in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        settings = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(values))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "CCLKIT_QUIET"} | {
        "CCLKIT_RESULTS": str(folder / "results"),
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={TOKEN}",
                f"--ServerApp.root_dir={folder / 'notebooks'}",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                "--LabApp.news_url=None",
                "--LabApp.extension_manager=readonly",
            ],
            env=env,
            stdout=log,
            stderr=log,
            cwd=folder,
        )

    def answers() -> bool:
        assert server.poll() is None, (folder / "log").read_text()[-2000:]
        try:
            return (
                urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/api/status?token={TOKEN}", timeout=5
                ).status
                == 200
            )
        except (urllib.error.URLError, OSError):
            return False

    try:
        browser.wait(answers, 90, "JupyterLab starts")
        yield f"http://127.0.0.1:{port}/lab/tree/00_start_here.ipynb?token={TOKEN}&reset"
    finally:
        browser.end(server)  # and it its kernels


@pytest.fixture(scope="module")
def page(lab, tmp_path_factory):
    page = browser.Browser(browser.find(), tmp_path_factory.mktemp("chromium"))
    try:
        page.open(lab)
        yield page
    finally:
        page.screenshot(SHOTS / "last.png")  # what a failed test stopped at
        page.close()


def all_of(selector: str) -> str:
    return f"[...document.querySelectorAll({selector!r})]"


PANEL = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)')"


def explorer(n: int) -> str:
    """The n-th explorer of the visible notebook, in the order of Playground.explorers."""
    return f"[...{PANEL}.querySelectorAll('.jp-OutputArea-output .widget-vbox')][{n}]"


def control(n: int, label: str) -> str:
    return (
        f"[...{explorer(n)}.querySelectorAll('.widget-label')].find(l => l.textContent ==="
        f" {label!r}).parentElement"
    )


def pictures(n: int) -> str:
    return f"[...{explorer(n)}.querySelectorAll('img')].map(i => i.src)"


def watched(page, n: int) -> None:
    """From now on note when a key went down or the mouse dragged, and how long after it a picture
    of an explorer changed.
    """
    page.js(f"""(() => {{
        window.reaction = null;
        const seen = e => {{ window.pressed = performance.now(); window.reaction = null; }};
        document.addEventListener('keydown', seen, {{capture: true}});
        document.addEventListener('pointermove', e => e.buttons && seen(e), {{capture: true}});
        const react = () => {{ window.reaction ??= performance.now() - window.pressed; }};
        new MutationObserver(react).observe({explorer(n)}, {{
            subtree: true, childList: true, attributes: true, attributeFilter: ['src']}});
    }})()""")


def changed(n: int, before: list[str]) -> str:
    return (
        f"JSON.stringify({pictures(n)}) !== {json.dumps(json.dumps(before, separators=(',', ':')))}"
    )


def test_a_reader_runs_the_playground_and_uses_it(page):
    opens_the_series(page)
    runs_it_from_the_menu(page)
    reactions = {
        "slider of the live codebook": moves_a_slider(page),
        "text of the query explorer": asks_for_something(page),
    }
    clicks_on_a_photograph(page)
    (SHOTS / "reactions.json").write_text(
        json.dumps({k: f"{v:.0f} ms" for k, v in reactions.items()}, indent=1)
    )


def opens_the_series(page) -> None:
    names = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))
    page.until(
        f"{all_of('.jp-DirListing-item')}.length >= {len(names)}",
        90,
        "the file browser lists the notebooks",
    )
    listed = page.js(
        f"{all_of('.jp-DirListing-item .jp-DirListing-itemText')}.map(e => e.textContent)"
    )
    assert sorted(listed) == names
    page.until(
        f"{all_of('.jp-NotebookPanel h1')}.some(h => h.textContent.startsWith('Start here'))",
        60,
        "notebook 00 is rendered",
    )
    page.screenshot(SHOTS / "1_series.png")


def runs_it_from_the_menu(page) -> None:
    page.click(
        f"{all_of('.jp-DirListing-item')}.find(e => e.textContent.includes('08_playground'))",
        times=2,
    )
    page.until(
        f"[...({PANEL}?.querySelectorAll('h1') ?? [])].some(h =>"
        " h.textContent.startsWith('Playground'))",
        60,
        "notebook 08 is rendered",
    )
    page.until(
        f"{PANEL}.querySelector('.jp-KernelName')?.textContent.startsWith('Python') &&"
        f" {PANEL}.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'",
        90,
        "its kernel is idle",
    )
    page.click(f"{all_of('.lm-MenuBar-item')}.find(e => e.textContent === 'Run')")
    page.until(
        f"{all_of('.lm-Menu-item')}.some(e => e.textContent.startsWith('Run All Cells'))",
        10,
        "the menu opens",
    )
    page.screenshot(SHOTS / "2_menu.png")
    page.click(f"{all_of('.lm-Menu-item')}.find(e => e.textContent.startsWith('Run All Cells'))")
    prompts = (
        f"[...{PANEL}.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
    )
    # an error clears the queue
    page.until(
        f"{prompts}[0].includes('1') && !{prompts}.some(p => p.includes('*'))",
        600,
        "the kernel is through with all cells",
    )
    assert page.js(f"{prompts}.every(p => /\\d/.test(p))"), page.js(
        f"[...{PANEL}.querySelectorAll('.jp-OutputArea-output')].at(-1).textContent"
    )[-2000:]
    page.until(
        f"{PANEL}.querySelectorAll('.jp-OutputArea-output .widget-vbox').length === 6 &&"
        f" {pictures(5)}.length === 6",
        30,
        "six explorers show their pictures",
    )


def moves_a_slider(page) -> float:
    """Of the live codebook; milliseconds until its picture changed."""
    handle = f"{control(3, 'λ pull')}.querySelector('.noUi-handle')"
    before, readout = (
        page.js(pictures(3)),
        page.js(f"{control(3, 'λ pull')}.querySelector('.widget-readout').textContent"),
    )
    page.place(handle)
    page.screenshot(SHOTS / "3_slider_before.png")
    watched(page, 3)
    page.drag(handle, 60)
    page.until(
        f"{control(3, 'λ pull')}.querySelector('.widget-readout').textContent !== {readout!r}",
        20,
        "the slider moves",
    )
    page.until(changed(3, before), 30, "the live codebook is drawn again")
    after = page.js(pictures(3))
    # λ changes nothing of the codebook without λ
    assert after[0] == before[0] and after[2] != before[2]
    page.screenshot(SHOTS / "4_slider_after.png")
    return page.until("window.reaction", 20, "the reaction is noted")


def asks_for_something(page) -> float:
    """In the query explorer; milliseconds until its picture changed."""
    box = f"{control(4, 'text')}.querySelector('input')"
    before = page.js(pictures(4))
    page.click(box)
    page.js(f"{box}.select()")
    page.type("green apple")
    watched(page, 4)
    page.press("Enter")
    page.until(
        f"[...{explorer(4)}.querySelectorAll('figcaption')].some(c => c.textContent.includes('green"
        " apple'))",
        30,
        "the caption names the text",
    )
    after = page.js(pictures(4))
    assert after[0] == before[0] and after[1] != before[1] and after[2] != before[2]
    page.place(f"{explorer(4)}.querySelectorAll('img')[2]")
    page.screenshot(SHOTS / "5_query.png")
    return page.until("window.reaction", 20, "the reaction is noted")


def clicks_on_a_photograph(page) -> None:
    """Of the mask explorer."""
    photo = f"{explorer(0)}.querySelectorAll('img')[0]"
    before = page.js(pictures(0))
    page.click(photo, at=(0.25, 0.75))
    page.until(changed(0, before), 30, "a click on the photograph draws new masks")
    x, y = (
        int(page.js(f"{control(0, name)}.querySelector('.widget-readout').textContent"))
        for name in "xy"
    )
    assert abs(x - 16) <= 1 and abs(y - 36) <= 1, (
        f"clicked at a quarter and three quarters of 64 x 48, got {x}, {y}"
    )
    page.screenshot(SHOTS / "6_click.png")
