"""Keys of artefacts: equal keys, equal results.

A key hashes settings, the keys of what was read, and the code that computes. The code is found by
walking the imports of the file where a stage (or a model, or a reader of scenes) stands, when a key
is asked for: no list of modules is kept anywhere, so none can be out of date. Comments, docstrings
and layout don't count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

from .. import _HOME
from ..errors import ArtefactError

KEY_LENGTH = 16
"""Hex digits of a key: 64 bits, no collisions at any number of runs a person makes."""
PACKAGE = Path(__file__).resolve().parents[1]
_AS_IMPORTED = {p: hashlib.sha256(p.read_bytes()).digest() for p in PACKAGE.rglob("*.py")}
"""What the package's files held when this process began with it."""


def content_key(**parts: Any) -> str:
    """Key of anything that JSON can hold: equal parts give equal keys.

    >>> content_key(margin=0.7) == content_key(margin=0.7) != content_key(margin=0.5)
    True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def code_key(*functions: Callable) -> str:
    """Hash of the code that functions run with: the files they stand in, and all that those import.

    It is the code as this process imported it: it is hashed once, and a file that was changed since
    is refused, because results of the old code would be filed under the new one. Raises
    ArtefactError for that, for a function that stands in no file, and for a file that imports by a
    computed name, which no walk can follow.
    """
    modules = {f.__module__ for f in functions}
    digests = [_loaded_digest(name, str(_file_of_loaded(name))) for name in sorted(modules)]
    names = sorted(f"{f.__module__}.{f.__qualname__}" for f in functions)
    return content_key(code=digests, functions=names)


def code_of_files(paths: Iterable[Path | str]) -> str:
    """The same for files as they are on disk."""
    files = {f for p in paths for f in closure(p)}
    return content_key(code={_shown(f): _digest_once(f) for f in files})


def code_of_imports(source: str) -> str:
    """The same for what a text imports: for notebooks, which run in processes of their own."""
    return code_of_files(_imported_files(ast.parse(source), None))


def closure(path: Path | str) -> list[Path]:
    """The file and every file of its package, and of this one, that its imports reach, in order of
    their paths.

    Imports inside of functions count, those for type checking only do not. The package's own
    ``__init__.py`` does not count: it hands out names and computes nothing.
    """
    seen = {PACKAGE / "__init__.py"}
    left = [Path(path).resolve()]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            left += _imports_of(file)
    return sorted(seen - {PACKAGE / "__init__.py"})


def file_digest(path: Path) -> str:
    """sha256 (hex) of what a source file does."""
    return hashlib.sha256(canonical(_parsed(path)).encode()).hexdigest()


def canonical(node: Any) -> str:
    """A syntax tree as text, alike on all Python versions (`ast.dump` gains fields from one to the
    next), without strings that stand alone: they are documentation.
    """
    if isinstance(node, ast.AST):
        parts = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):
                value = [s for s in value if not _is_documentation(s)]
            if value is not None and value != []:
                parts.append(f"{name}={canonical(value)}")
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return "[" + ",".join(map(canonical, node)) + "]"
    return repr(node)


# ---------------------------------------------------------------------------


@cache
def _loaded_digest(name: str, path: str) -> dict[str, str]:
    """Digests of the files that a loaded module reaches. Cached: the code of a process does not
    change.
    """
    files = closure(path)
    loaded = {Path(f).resolve() for m in list(sys.modules.values()) if (f := _file(m))}
    for file in files:
        if file in loaded and _changed_since_import(file):
            raise ArtefactError(
                f"{file}: was changed after this process imported it, so results would be filed"
                " under code that did not make them; restart the process (in a notebook: the"
                " kernel) and run again"
            )
    return {_shown(f): _digest_once(f) for f in files}


def _changed_since_import(file: Path) -> bool:
    """Whether a source file is another than this process imported. Files of the package are
    compared with what they were when this module was imported; others with their compiled copy,
    where Python wrote one.
    """
    if file in _AS_IMPORTED:
        return _AS_IMPORTED[file] != hashlib.sha256(file.read_bytes()).digest()
    try:
        header = Path(cache_from_source(str(file))).read_bytes()[:16]
    except (OSError, NotImplementedError):
        return False
    flags, modified, size = struct.unpack("<4xLLL", header)
    stat = file.stat()
    same = modified == int(stat.st_mtime) & 0xFFFFFFFF and size == stat.st_size & 0xFFFFFFFF
    return flags == 0 and not same


@cache
def _digest_once(path: Path) -> str:
    return file_digest(path)


def _shown(file: Path) -> str:
    """A file's name wherever its package lies."""
    return file.relative_to(_package_root(file).parent).as_posix()


def _file(module: Any) -> str | None:
    return getattr(module, "__file__", None)


def _file_of_loaded(name: str) -> Path:
    file = _file(sys.modules.get(name))
    if not file or not Path(file).is_file():
        raise ArtefactError(
            f"code that makes artefacts stands in {name!r}, which is no file, so nothing could tell"
            " when it changes; put it into a module of its own and import it"
        )
    return Path(file).resolve()


def _package_root(file: Path) -> Path:
    """Folder of a file's outermost package; its own folder if it is in none."""
    folder = file.parent
    while (folder.parent / "__init__.py").is_file() and (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


@cache
def _imports_of(file: Path) -> list[Path]:
    return list(_imported_files(_parsed(file), file))


def _imported_files(tree: ast.AST, file: Path | None) -> Iterator[Path]:
    """Files of this package, and of the importing file's own, that code imports."""
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                yield from _files_of(a.name.split("."), file)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                root, package = _package_root(file), file.parents[node.level - 1]
                parts = [root.name, *package.relative_to(root).parts, *parts]
            for a in node.names:
                yield from _files_of([*parts, a.name], file)
        if _imports_by_name(node):
            raise ArtefactError(
                f"{file}:{node.lineno}: imports a module by a computed name, which artefact keys"
                " cannot follow; write an import statement"
            )


def _files_of(parts: list[str], importer: Path | None) -> Iterator[Path]:
    """The module of a dotted name, or the one that defines its last part, and its packages."""
    own = _package_root(importer) if importer is not None else PACKAGE
    if parts[0] == PACKAGE.name:
        folder = PACKAGE.parent
        if len(parts) == 1:  # the whole public face: any of its names may be used
            for home in sorted(set(_HOME.values())):
                yield from _files_of([PACKAGE.name, *home.split(".")], importer)
            return
        if parts[1] in _HOME:
            parts = [PACKAGE.name, *_HOME[parts[1]].split(".")]
    elif parts[0] == own.name and (own / "__init__.py").is_file():
        folder = own.parent
    elif not (own / "__init__.py").is_file() and own.name not in ("site-packages", "dist-packages"):
        folder = own  # a lone module may have others beside it
    else:
        return
    for part in parts:
        if (folder / f"{part}.py").is_file():
            yield folder / f"{part}.py"
            return
        folder = folder / part
        if not (folder / "__init__.py").is_file():
            return
        yield folder / "__init__.py"


_FOR_TYPES = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below ``if TYPE_CHECKING:``, which never run."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in _FOR_TYPES:
            left += node.orelse
        else:
            left += ast.iter_child_nodes(node)


BY_NAME = ("__import__", "import_module", "exec_module", "run_path", "run_module")


def _imports_by_name(node: ast.AST) -> bool:
    """Whether code calls, or imports under whatever name, what imports by a computed name."""
    if isinstance(node, ast.ImportFrom):
        return any(a.name in BY_NAME for a in node.names)
    if not isinstance(node, ast.Call):
        return False
    f = node.func
    name = f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else ""
    return name in BY_NAME


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_documentation(statement: ast.AST) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)
