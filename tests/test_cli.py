"""The command line: what it costs to ask for help, where commands went, what a fault looks like."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cclkit import cli
from cclkit.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"run", "query", "evaluate", "figures", "settings", "data"}
ONLY_ON_UNIX = {"fcntl", "resource", "pwd", "grp", "termios", "syslog"}


def python(code, **environment):
    """What a fresh interpreter prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_cclkit_loads_no_torch_and_changes_no_environment():
    found = python(
        "import json, os, sys\n"
        "before, modules = dict(os.environ), set(sys.modules)\n"
        "import cclkit\n"
        "new = sorted({m.partition('.')[0] for m in set(sys.modules) - modules})\n"
        "print(json.dumps([before == dict(os.environ), new]))"
    )
    same, new = found
    assert same
    assert not set(new) & {"torch", "numpy", "numba", "cv2", "matplotlib", "sam2", "open_clip"}


@pytest.mark.parametrize("argv", [["--help"], *([c, "--help"] for c in sorted(COMMANDS))])
def test_help_waits_for_nothing(argv):
    found = python(
        "import json, sys\n"
        "from cclkit import cli\n"
        "try: cli.main(sys.argv[1:] or json.loads(" + repr(json.dumps(argv)) + "))\n"
        "except SystemExit as e: print(json.dumps([e.code, 'torch' in sys.modules,"
        " 'numpy' in sys.modules]))"
    )
    assert found == [0, False, False]


def test_help_names_every_command_and_no_other(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert {line.split()[0] for line in out.splitlines() if line.startswith("    ")} >= COMMANDS
    assert not {line.split()[0] for line in out.splitlines() if line.strip()} & set(cli.IN_LAB)
    with pytest.raises(SystemExit):
        cli.main(["trace"])
    assert "invalid choice: 'trace'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench", "benchmark", "compare", "sweep", "ledger", "book"])
def test_commands_of_the_laboratory_are_named(name, capsys):
    assert cli.main([name, "data/my sweeps.toml", "--workers", "2"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert f"run: python -m lab {name} 'data/my sweeps.toml' --workers 2" in err


def test_the_laboratory_has_all_that_moved_there():
    done = subprocess.run(
        [sys.executable, "-m", "lab", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ")}
    assert listed >= set(cli.IN_LAB)


@pytest.mark.parametrize(
    "fault, status, said",
    [
        (DataError("a.bin: damaged; fetch it again"), 1, "cclkit: a.bin: damaged; fetch it again"),
        (KeyboardInterrupt(), 130, "run the same command again to go on"),
        (OSError(28, "No space left on device", "/x"), 1, "cannot be written (No space left"),
        (ModuleNotFoundError("no torch", name="torch"), 1, "torch is not installed"),
    ],
)
def test_what_users_can_do_something_about_is_one_line(fault, status, said, capsys):
    def command():
        raise fault

    assert cli.guarded(command) == status
    err = capsys.readouterr().err
    assert said in err and err.strip().count("\n") == 0


def test_a_fault_of_ours_is_shown_whole():
    for fault in (ValueError("x"), OSError(13, "Permission denied", "/x")):

        def command(fault=fault):
            raise fault

        with pytest.raises(type(fault)):
            cli.guarded(command)


def test_modules_that_only_unix_has_are_not_asked_of_others():
    """`fcntl` and `resource` are missing on Windows: their import stands in a try."""
    for path in (p for part in ("cclkit", "lab") for p in (ROOT / part).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = {
            id(node)
            for t in ast.walk(tree)
            if isinstance(t, ast.Try) and any("ImportError" in _caught(h) for h in t.handlers)
            for node in t.body
        }
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
                names = {a.name for a in node.names} | {getattr(node, "module", None)}
                assert not names & ONLY_ON_UNIX, f"{path}:{node.lineno}"


def _caught(handler):
    return ast.unparse(handler.type) if handler.type else ""


@pytest.mark.parametrize("without", ["fcntl", "resource"])
def test_the_package_is_imported_without_them(without):
    code = (
        f"import json, sys; sys.modules[{without!r}] = None\n"
        "import cclkit.machine, cclkit.downloads.disk, cclkit.runs.store\n"
        "print(json.dumps(cclkit.machine.peak_memory_mb() >= 0))"
    )
    assert python(code) is True
