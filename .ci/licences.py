"""LICENCES.md: the licence of every pinned package, as its installed metadata state it. `python
.ci/licences.py` writes it.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "LICENCES.md"
HEAD = """# Licences of dependencies

What the packages pinned in constraints.txt say of themselves in their metadata. None of them is
part of this repository.
Written by `python .ci/licences.py`; a test compares it with what is installed.

| package | version | licence |
| --- | --- | --- |
"""


def licence(name: str) -> str:
    """Licence of an installed package: its expression, else its short text, else its
    classifiers.
    """
    about = metadata(name)
    text = (about.get("License-Expression") or "").strip() or (about.get("License") or "").strip()
    if not text or "\n" in text or len(text) > 80 or text.upper() == "UNKNOWN":
        named = [
            c.rsplit(" :: ", 1)[1]
            for c in about.get_all("Classifier") or ()
            if c.startswith("License :: ") and not c.endswith("OSI Approved")
        ]
        text = (
            "; ".join(named)
            or (text.splitlines()[0].strip()[:80] if text else "")
            or "not stated in its metadata"
        )
    return text.replace("|", "/")


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def committed() -> dict[str, tuple[str, str]]:
    rows = (
        re.findall(r"^\| (\S+) \| (\S+) \| (.+?) \|$", TABLE.read_text(encoding="utf-8"), re.M)
        if TABLE.is_file()
        else []
    )
    return {name: (version, text) for name, version, text in rows if name not in ("package", "---")}


def table() -> str:
    """The file's text; what is pinned but not installed here (optional packages) keeps its line."""
    rows = []
    for name, version in sorted(pinned().items(), key=lambda p: p[0].lower()):
        try:
            text = licence(name)
        except PackageNotFoundError:
            text = committed().get(name, (version, "not installed where this was written"))[1]
        rows.append(f"| {name} | {version} | {text} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    sys.exit(0)
