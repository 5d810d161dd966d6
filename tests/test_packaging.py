"""pyproject.toml, constraints.txt and environment.yml say the same; nothing machine-specific is
tracked.
"""

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import cclkit

ROOT = Path(__file__).parent.parent


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    lines = [l.strip() for l in (ROOT / "constraints.txt").read_text().splitlines()]
    return {
        normal(l.split("==")[0]): l.split("==")[1] for l in lines if l and not l.startswith("#")
    }


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirement(text):
    name, *pin = re.split(r"==", text)
    return normal(re.split(r"[<>=!~;\[ ]", name)[0]), pin[0] if pin else None


def test_constraints_pin_exactly_and_once():
    lines = [
        l
        for l in (ROOT / "constraints.txt").read_text().splitlines()
        if l.strip() and not l.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", l) for l in lines), [
        l for l in lines if "==" not in l
    ]
    assert len(pins()) == len(lines)


def test_every_dependency_is_pinned_and_agrees():
    groups = [project()["dependencies"], *project()["optional-dependencies"].values()]
    for text in (t for group in groups for t in group):
        name, pin = requirement(text)
        assert name in pins(), f"{name} is in pyproject.toml but not in constraints.txt"
        assert pin is None or pins()[name] == pin, (
            f"{name}: pyproject.toml pins {pin}, constraints.txt {pins()[name]}"
        )


def test_tested_pair_of_torch_and_torchvision():
    assert (pins()["torch"], pins()["torchvision"]) == ("2.14.1", "0.29.1")


def test_environment_file_uses_the_same_constraints():
    text = (ROOT / "environment.yml").read_text()
    active = [l.split("#")[0].rstrip() for l in text.splitlines()]
    items = [l.strip().removeprefix("- ").strip() for l in active if l.strip().startswith("-")]
    assert "--constraint constraints.txt" in items and "-e ." in items
    for item in items:
        if "==" in item:
            name, pin = requirement(item)
            assert pins()[name] == pin, (
                f"environment.yml pins {item}, constraints.txt {pins().get(name)}"
            )
    python = next(i for i in items if i.startswith("python="))
    required = project()["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= tuple(
        map(int, required.split("."))
    )
    assert "cuda" in text.lower(), "the commented CUDA variant is missing"


def test_installed_versions_are_the_pinned_ones():
    different = {}
    for name, pin in pins().items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue  # optional, or for another platform
        if installed != pin:
            different[name] = (installed, pin)
    assert not different, f"installed differs from constraints.txt: {different}; run make setup"


def test_version_is_the_same_everywhere():
    assert project()["version"] == cclkit.__version__
    assert f"version: {cclkit.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {cclkit.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def tracked():
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / f for f in out.stdout.split("\0") if f and (ROOT / f).exists()]


def test_no_absolute_paths_and_no_large_files():
    # of them mini-SAM2 8
    assert sum(p.stat().st_size for p in tracked() if p.suffix == ".safetensors") <= 20_000_000
    for path in tracked():
        size = path.stat().st_size
        assert size < (12_000_000 if path.suffix == ".safetensors" else 5_000_000), (
            f"{path}: {size} bytes"
        )
        if path.suffix in {
            ".py",
            ".md",
            ".toml",
            ".yml",
            ".txt",
            ".ipynb",
            ".json",
            ".csv",
            ".cff",
            "",
        } and path.name not in (
            "test_packaging.py",
            "test_notebooks.py",
        ):  # these two hold the patterns
            text = path.read_text(encoding="utf-8", errors="ignore")
            found = re.search(r"(?<![\w.])/(home|work|root|Users|tmp)/", text)
            assert not found, (
                f"{path}: names a machine path near"
                f" {text[max(0, found.start() - 30) : found.end() + 30]!r}"
            )


def test_data_stays_below_its_budget():
    total = sum(p.stat().st_size for p in tracked() if p.is_relative_to(ROOT / "data"))
    assert total <= 40e6, f"data/ holds {total / 1e6:.1f} MB"


def test_readme_numbers_come_from_results():
    from cclkit.notebook.tables import README_BLOCK

    tracked()  # skips outside of git
    text = (ROOT / "README.md").read_text()
    assert len(README_BLOCK.findall(text)) >= 4
    # against the tables in git's index: `make figures` on another machine may round a number
    # differently
    for _, name, shown, _ in README_BLOCK.findall(text):
        kept = subprocess.run(["git", "show", f":{name}"], cwd=ROOT, capture_output=True, text=True)
        assert kept.returncode == 0, (
            f"README.md repeats {name}, which is not committed; run: cclkit figures --write-back"
        )
        assert shown.strip() == kept.stdout.strip(), (
            f"README.md repeats {name} wrongly; run: cclkit figures --write-back"
        )


def test_a_readme_block_without_its_table_is_one_error(tmp_path):
    from cclkit.errors import ArtefactError
    from cclkit.notebook.tables import readme_with_tables

    (tmp_path / "a.md").write_text("| 1 |\n")
    assert (
        readme_with_tables("x\n<!-- table: a.md -->\nold\n<!-- end -->\n", tmp_path)
        == "x\n<!-- table: a.md -->\n| 1 |\n<!-- end -->\n"
    )
    with pytest.raises(ArtefactError, match="run `make figures`"):
        readme_with_tables("<!-- table: b.md -->\n<!-- end -->", tmp_path)


def ci(name):
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / f".ci/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def licences():
    return ci("licences")


def test_the_lock_agrees_with_constraints_and_every_file_has_a_hash():
    lock = ci("lock")
    wheels, sources = lock.read(lock.WHEELS), lock.read(lock.SOURCES)
    # another one is a decision
    assert not wheels.keys() & sources.keys() and set(sources) == {
        "antlr4-python3-runtime",
        "connection-pool",
        "iopath",
        "sam2",
    }
    locked = wheels | sources
    assert all(
        hashes and all(re.fullmatch(r"[0-9a-f]{64}", h) for h in hashes)
        for _, hashes in locked.values()
    )
    different = {
        n: (version, pins()[n])
        for n, (version, _) in locked.items()
        if n in pins() and version != pins()[n]
    }
    assert not different, (
        f"the lock differs from constraints.txt: {different}; run: .venv/bin/python .ci/lock.py"
    )
    free = {n for n in locked if n not in pins()}
    assert all(re.match(r"nvidia-|cuda-|triton$", n) for n in free), (
        f"neither torch's own nor pinned in constraints.txt: {free}"
    )
    missing = {requirement(t)[0] for t in project()["dependencies"]} - set(locked)
    assert not missing, f"not in the lock: {missing}; run: .venv/bin/python .ci/lock.py"
    for path in (lock.WHEELS, lock.SOURCES):
        entries = lock.read(path)
        # nothing in it but names, versions and hashes
        assert path.read_text().split("\n", 1)[1] == lock.text("", entries).split("\n", 1)[1]


def test_the_lock_holds_all_that_locked_packages_ask_for():
    """Nothing outside the lock is ever fetched (--no-deps), so what installed packages require must
    be in it.
    """
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    lock = ci("lock")
    locked = lock.read(lock.WHEELS) | lock.read(lock.SOURCES)
    asked = {}
    for name in locked:
        try:
            needs = map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            continue  # another platform
        asked |= {
            normal(r.name): (name, r)
            for r in needs
            if r.marker is None
            or r.marker.evaluate(
                {
                    "extra": "",
                    "sys_platform": "linux",
                    "platform_system": "Linux",
                    "platform_machine": "x86_64",
                }
            )
        }
    assert len(asked) > 80
    assert not {
        n: str(a)
        for n, a in asked.items()
        if n not in locked or not a[1].specifier.contains(locked[n][0], prereleases=True)
    }


def test_ci_installs_by_hash_and_nothing_else():
    def run(*a):
        command = ["make", "-n", "-B", "setup", "PYTHON=python3", *a]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    installs = [l for l in run("LOCKED=1").splitlines() if "pip install" in l]
    assert (
        len(installs) == 3
        and all("--no-deps" in l for l in installs)
        and all("--require-hashes" in l for l in installs[:2])
        and installs[2].endswith("-e .")
    )
    assert "--require-hashes" not in run() and "-c constraints.txt" in run()  # other platforms
    assert "make setup LOCKED=1" in (ROOT / ".ci/run").read_text()


def test_the_licence_table_is_what_the_installed_packages_say():
    found = licences()
    assert found.TABLE.read_text(encoding="utf-8") == found.table(), "run: python .ci/licences.py"
    assert set(found.committed()) == set(found.pinned())


def test_no_licence_forbids_use_and_copyleft_is_named():
    """A new dependency under the GPL, or for non-commercial use, is a decision somebody has to
    take.
    """
    rows = licences().committed()
    assert not {
        n: t
        for n, (_, t) in rows.items()
        if re.search(r"non-?commercial|proprietary|AGPL|Affero", t, re.I)
    }
    assert {
        n
        for n, (_, t) in rows.items()
        if re.search(r"(?<!L)GPL|General Public License v", t) and "Lesser" not in t
    } == {"docutils"}  # of docutils, one file for Emacs
