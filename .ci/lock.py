"""lock.txt and lock-sdist.txt: every file that `make setup LOCKED=1` installs, with its SHA-256.
`.venv/bin/python .ci/lock.py` writes them.

For Linux x86-64 and CPython 3.11; elsewhere constraints.txt is the way. Two files, because sam2's
set-up imports torch: source distributions are built with what lock.txt installed, and nothing else
is fetched for it. pip is asked twice, as it is configured here and without any configuration, since
a mirror may serve a build of its own: either file is accepted.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS, SOURCES = ROOT / ".ci/lock.txt", ROOT / ".ci/lock-sdist.txt"
HEAD = (
    "# {}, for Linux x86-64 and CPython 3.11. Written by .ci/lock.py from pyproject.toml and"
    " constraints.txt; used by `make setup LOCKED=1`.\n"
)
BUILD = ("setuptools",)  # what source distributions and cclkit itself are built with


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def report(
    requirements: list[str], *options: str, before: tuple[str, ...] = ()
) -> dict[str, tuple[str, str, str]]:
    """What pip would install into an empty environment: version, file name and SHA-256 by
    normalised name. pip says what is wrong and the script ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                *before,
                "install",
                "-qq",
                "--dry-run",
                "--ignore-installed",
                "--no-build-isolation",
                "--report",
                str(path),
                *options,
                *requirements,
            ],
            cwd=ROOT,
            env=os.environ | {"SAM2_BUILD_CUDA": "0"},
            check=True,
        )
        found = json.loads(path.read_text())["install"]
    return {
        normal(i["metadata"]["name"]): (
            i["metadata"]["version"],
            i["download_info"]["url"].rsplit("/", 1)[1],
            i["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for i in found
    }


def text(head: str, entries: dict[str, tuple[str, set[str]]]) -> str:
    return HEAD.format(head) + "".join(
        f"{name}=={version} \\\n"
        + " \\\n".join(f"    --hash=sha256:{h}" for h in sorted(hashes))
        + "\n"
        for name, (version, hashes) in sorted(entries.items())
    )


def read(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Version and accepted hashes of every requirement of a lock."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    split = (line.split() for line in lines if line and not line.startswith("#"))
    return {
        first.split("==")[0]: (
            first.split("==")[1],
            {h.removeprefix("--hash=sha256:") for h in hashes},
        )
        for first, *hashes in split
    }


def main() -> None:
    here = (
        platform.system(),
        platform.machine(),
        platform.python_implementation(),
        sys.version_info[:2],
    )
    if here != ("Linux", "x86_64", "CPython", (3, 11)):
        sys.exit(f"the lock is for Linux x86-64 and CPython 3.11, this is {here}; run it there")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    configured = report([*BUILD, *dependencies], "-c", "constraints.txt")
    plain = report(
        [f"{name}=={version}" for name, (version, *_) in configured.items()],
        "--no-deps",
        before=("--isolated",),
    )
    wheels, sources = {}, {}
    for name, (version, *_) in configured.items():
        files = [configured[name][1:], plain[name][1:]]
        part = wheels if all(f.endswith(".whl") for f, _ in files) else sources
        part[name] = (version, {h for _, h in files})
    WHEELS.write_text(text("Wheels", wheels))
    SOURCES.write_text(text("Source distributions, built with what lock.txt installs", sources))
    print(
        f"{len(wheels)} wheels, {len(sources)} source distributions; two files accepted for:"
        f" {', '.join(n for n, (_, h) in (wheels | sources).items() if len(h) > 1) or 'none'}"
    )


if __name__ == "__main__":
    main()
