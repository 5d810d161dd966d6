"""What files of others could make the code do: nothing is unpickled, no shell is asked, no
connection is made unasked.
"""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for part in ("cclkit", "lab") for p in (ROOT / part).rglob("*.py"))
NETWORK = (
    "requests",
    "urllib",
    "http",
    "socket",
    "ftplib",
    "httpx",
    "aiohttp",
    "pooch",
    "huggingface_hub",
    "gdown",
)
UNPICKLERS = ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle")


def notebook_code(path):
    return "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")


def programs():
    beside = [*(ROOT / ".ci").glob("*.py"), *(ROOT / "notebooks" / "solutions").glob("*.py")]
    return [
        (p.relative_to(ROOT).as_posix(), p.read_text(encoding="utf-8")) for p in [*SOURCES, *beside]
    ] + [(p.name, notebook_code(p)) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def faults(source):
    """(line, what) of every call that could run what a file or a name says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [f"{node.module}.{a.name}" for a in node.names]
            )
            # pickle: for the name of its error
            found += [
                (node.lineno, n) for n in names if n.split(".")[0] in UNPICKLERS and n != "pickle"
            ]
            found += [
                (node.lineno, f"{n} by a name that hides it")
                for n, a in zip(names, node.names)
                if n.split(".")[0] in ("os", "subprocess")
                and (a.asname or n.startswith("subprocess.") or n in ("os.system", "os.popen"))
            ]
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "pickle"
            and node.attr != "UnpicklingError"
        ):
            found.append((node.lineno, f"pickle.{node.attr}"))
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in (
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "yaml.load",
            "yaml.unsafe_load",
            "torch.hub.load",
            "torch.jit.load",
            "pd.read_pickle",
            "get_ipython",
        ) or name.startswith(
            ("os.exec", "os.spawn", "subprocess.get", "asyncio.create_subprocess_shell")
        ):
            found.append((node.lineno, name))
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append((node.lineno, "torch.load without weights_only=True"))
        if name == "np.load" and given.get("allow_pickle", "False") != "False":
            found.append((node.lineno, "np.load with pickles"))
        if given.get("shell", "False") != "False":
            found.append((node.lineno, "a shell"))
        if (
            name.startswith("subprocess.")
            and node.args
            and not isinstance(node.args[0], (ast.List, ast.Tuple))
        ):
            found.append((node.lineno, "a command that is no list"))
    return found


def test_nothing_unpickles_or_asks_a_shell():
    found = {name: f for name, source in programs() if (f := faults(source))}
    assert not found


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle\npickle.load(f)",
        "from joblib import load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "os.system(f'rm {name}')",
        "subprocess.run(f'ls {name}', shell=True)",
        "subprocess.run('ls ' + name)",
        "eval(text)",
        "yaml.load(f)",
        "from os import system",
        "from subprocess import run",
        "import subprocess as s",
        "subprocess.getoutput('ls ' + name)",
        "get_ipython().system('ls')",
        "os.execvp(name, [name])",
    ],
)
def test_the_check_notices(bad):
    assert faults(bad)


def test_only_transfer_knows_a_network():
    found = {}
    for name, source in programs():
        for node in ast.walk(ast.parse(source)):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom) and not node.level
                    else []
                )
            )
            if (
                bad := [n for n in names if n.split(".")[0] in NETWORK]
            ) and name != "cclkit/downloads/transfer.py":
                found[name] = bad
    assert not found


def test_only_the_command_data_fetch_reaches_fetching():
    for name, source in programs():
        if name in ("cclkit/cli.py", "cclkit/downloads/fetching.py"):
            continue
        parts = set()
        for n in ast.walk(ast.parse(source)):
            if isinstance(n, (ast.Import, ast.ImportFrom)):
                named = [a.name for a in n.names] + [getattr(n, "module", None) or ""]
                parts |= {part for dotted in named for part in dotted.split(".")}
        assert not parts & {"fetching", "transfer"}, name


GUARDED = textwrap.dedent("""
    import os, socket, sys, urllib.request
    os.environ["CCLKIT_OFFLINE"] = "1"
    from cclkit.errors import NotebookError
    from cclkit.notebook.start import start
    server = socket.create_server(("127.0.0.1", 0))
    nb = start("00_start_here")
    # this machine: kernels talk to Jupyter
    socket.create_connection(server.getsockname()).close()
    for attempt in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: urllib.request.urlopen("https://example.org", timeout=5),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    ):
        try:
            attempt()
        except NotebookError as e:
            assert "CCLKIT_OFFLINE" in str(e)
        else:
            sys.exit("a connection was made")
    print("guarded", nb.run.scene.name)
    """)


def test_notebooks_work_with_the_network_shut():
    """`start` shuts it under CCLKIT_OFFLINE, with which `make test` runs every notebook twice."""
    out = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0 and "guarded tea_party" in out.stdout, out.stderr
    recipe = (ROOT / "Makefile").read_text().split("\ntest: ")[1].split("\n\n")[0]
    runs = [line for line in recipe.splitlines() if "figures" in line or "nbval" in line]
    assert len(runs) == 2 and all("CCLKIT_OFFLINE=1" in line for line in runs)


@pytest.mark.parametrize(
    "name", ["$(touch hit)", "; touch hit", "`touch hit`", "-rf", "a b", "--help"]
)
def test_names_are_never_commands(tmp_path, name, monkeypatch):
    from conftest import write_plane_scene

    from cclkit import cli

    monkeypatch.chdir(tmp_path)
    write_plane_scene(tmp_path, n_views=2, name=name)
    small = [
        x
        for s in ("front_end.masks=simulated", "front_end.features=simulated")
        for x in ("--set", s)
    ]
    assert (
        cli.main(
            [
                "run",
                f"--scene={tmp_path / name}",
                f"--out={tmp_path / 'out' / name}",
                "--until",
                "tracks",
                *small,
            ]
        )
        == 0
    )
    assert not list(tmp_path.rglob("hit")) and {p.name for p in tmp_path.iterdir()} == {
        name,
        "label",
        "out",
    }
