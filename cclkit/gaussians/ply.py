"""PLY files (Turk 1994) of plain numbers: what a splat is kept in.

A header can't make anyone ask for memory that the file doesn't fill: counts are compared with the
file's size first, and binary data are memory-mapped. Written are float32 columns, binary and
little-endian; read are both byte orders and text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import GaussiansError, reason

TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
HEADER_MAX = 1 << 16  # bytes; a header of 3DGS has about 1,500


def table_bytes(table: np.ndarray, names: list[str]) -> bytes:  # [G, len(names)] float
    """A file with one element, "vertex", of float32 properties."""
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(table)}",
        *(f"property float {n}" for n in names),
        "end_header\n",
    ]
    return "\n".join(header).encode("ascii") + np.ascontiguousarray(table, "<f4").tobytes()


def read_vertices(path: Path, remedy: str) -> np.ndarray:  # [G] structured, a field per property
    """The element "vertex" of a file; binary ones are read-only views of it.

    Raises GaussiansError naming the file: unreadable, no such element, properties that are lists,
    or more or less data than the header counts.
    """
    try:
        with open(path, "rb") as f:
            head = f.read(HEADER_MAX)
        form, elements, start = _header(head)
        rows_before, bytes_before, found = 0, 0, None
        for name, count, properties in elements:
            if count and "list" in properties.values():
                raise ValueError(
                    f"element {name!r} has a property that is a list, expected plain numbers"
                )
            dtype = np.dtype(
                [(n, ORDERS[form] + TYPES[t]) for n, t in properties.items() if t != "list"]
            )
            if name == "vertex":
                found = (dtype, count, rows_before, bytes_before)
            rows_before, bytes_before = rows_before + count, bytes_before + count * dtype.itemsize
        if found is None:
            raise ValueError(f"has elements {[name for name, *_ in elements]}, expected 'vertex'")
        dtype, count, skipped, offset = found
        if form == "ascii":
            return _text_rows(path, start, dtype, count, skipped, rows_before)
        extra = path.stat().st_size - start - bytes_before
        if extra:
            raise ValueError(
                f"holds {abs(extra)} bytes {'more' if extra > 0 else 'fewer'} than its header"
                f" counts, {count} vertices"
            )
        return (
            np.memmap(path, dtype, "r", start + offset, (count,))
            if count and dtype.itemsize
            else np.zeros(0, dtype)
        )
    except OSError as e:
        raise GaussiansError(f"{path}: cannot be read ({e.strerror or e}); check the path") from e
    except (ValueError, OverflowError) as e:
        raise GaussiansError(
            f"{path}: not a complete PLY file ({reason(e)}), expected a 3DGS PLY; {remedy}"
        ) from e


def _header(head: bytes) -> tuple[str, list[tuple[str, int, dict[str, str]]], int]:
    """Format, elements (name, count, type by property) and where the data start. Raises
    ValueError.
    """
    form, elements, start = None, [], 0
    for number, raw in enumerate(head.splitlines(keepends=True)):
        start += len(raw)
        match raw.decode("utf-8", "replace").split():
            case ["ply"] if number == 0:
                pass
            case _ if number == 0:
                raise ValueError("its first line isn't 'ply'")
            case ["format", form, "1.0"] if form in ORDERS:
                pass
            case ["element", name, count] if (
                count.isascii()
                and count.isdigit()
                and len(count) <= 18
                and name not in [e[0] for e in elements]
            ):
                elements.append((name, int(count), {}))
            case ["property", kind, name] if (
                elements and kind in TYPES and name not in elements[-1][2]
            ):
                elements[-1][2][name] = kind
            case ["property", "list", size, kind, name] if (
                elements and size in TYPES and kind in TYPES and name not in elements[-1][2]
            ):
                elements[-1][2][name] = "list"
            case ["comment" | "obj_info", *_]:
                pass
            case ["end_header"] if form in ORDERS and raw.endswith(b"\n"):
                return form, elements, start
            case words:
                raise ValueError(f"line {number + 1} of its header is {' '.join(words)[:80]!r}")
    raise ValueError(f"its header doesn't end within {len(head)} bytes")


def _text_rows(
    path: Path, start: int, dtype: np.dtype, count: int, skipped: int, total: int
) -> np.ndarray:
    """``count`` rows of text after ``skipped`` others, of ``total`` in the file. Raises
    ValueError.
    """
    with open(path, "rb") as f:
        f.seek(start)
        rows = [line for line in f.read().split(b"\n") if line.strip()]
    if len(rows) != total:
        raise ValueError(f"holds {len(rows)} rows, its header counts {total}")
    rows = rows[skipped : skipped + count]
    return (
        np.loadtxt(rows, dtype, comments=None, ndmin=1)
        if rows and dtype.names
        else np.zeros(0, dtype)
    )
