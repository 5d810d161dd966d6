"""The public face: every name has a docstring whose example runs."""

import doctest
import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cclkit

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_EXAMPLE = {"CclkitError", "CodebookConfig", "Config", "EvaluationConfig", "Scene", "View"}
"""Names that stand here for annotations and for catching errors."""
CALLED = sorted(set(cclkit.__all__) - WITHOUT_EXAMPLE - {"__version__"})


@pytest.mark.parametrize("name", CALLED)
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path / "results"))
    thing = getattr(cclkit, name)
    names = {n: getattr(cclkit, n) for n in cclkit.__all__} | {"folder": tmp_path}
    tests = [
        t for t in doctest.DocTestFinder(recurse=False).find(thing, name, globs=names) if t.examples
    ]
    assert tests, f"cclkit.{name} has no example"
    out: list[str] = []
    for test in tests:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        result = doctest.DocTestRunner(optionflags=flags).run(test, out=out.append)
        assert result.failed == 0, "".join(out)


def test_names_are_listed_and_unknown_ones_refused():
    assert set(dir(cclkit)) == set(cclkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'codebok'"):
        _ = cclkit.codebok


@pytest.mark.parametrize("name", CALLED)
def test_docstrings_are_in_the_wheel_too(name):
    assert len(inspect.getdoc(getattr(cclkit, name))) > 60


def test_importing_is_quick():
    """Best of three: another process may be at work."""
    code = "import time; t = time.perf_counter(); import cclkit; print(time.perf_counter() - t)"
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
        )
        seconds.append(float(done.stdout))
        time.sleep(0.1)
    assert min(seconds) <= 0.3


def test_a_package_that_is_missing_is_named_when_it_is_needed():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import cclkit\n"
        "print(len(cclkit.__all__))\n"
        "try: cclkit.rasterize\n"
        "except cclkit.CclkitError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2 and "torch" in said[1] and "pip install" in said[1]
