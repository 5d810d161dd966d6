"""Ways to damage a file, each a pure function of (content, random generator); `fuzz` draws from
them.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
Mutate = Callable[[bytes, Rng], bytes]

INTEGERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**24,
    2**31 - 1,
    -(2**31),
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
)
NUMBERS = (
    "0",
    "-1",
    "1e999",
    "-1e308",
    "nan",
    "inf",
    "1e-320",
    "99999999999999999999",
    "4294967296",
    "2147483648",
    "0.5",
    "0x10",
    "1_000",
    "",
    "null",
    "true",
    '"x"',
    "١",
)
TEXTS = (
    "",
    " ",
    "\0",
    "\ufeff",
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\x",
    "a" * 5000,
    "é",
    "\U0001f600",
    "%s%n",
    "{}",
    "[",
    "'",
    '"',
    "\r",
    "\x1b[31m",
    "-",
    "nan",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    "\0",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, 2],
    [[1, 2], [3]],
    "a" * 2000,
)


def anything(content: bytes, rng: Rng) -> bytes:
    """One to three faults in the bytes."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        n = len(data)
        at = int(rng.integers(0, n + 1))
        length = int(min(n - at, rng.integers(1, 64)))
        match int(rng.integers(0, 11)):
            case 0 if n:
                data[at % n] ^= 1 << int(rng.integers(0, 8))
            case 1 if n:
                for _ in range(int(rng.integers(1, 16))):
                    data[int(rng.integers(0, n))] = int(rng.integers(0, 256))
            case 2 | 3:  # a count or size somewhere, in any width and order
                width = "bhiqBHIQ"[int(rng.integers(0, 8))]
                size = struct.calcsize(width)
                value = INTEGERS[int(rng.integers(0, len(INTEGERS)))] & (256**size - 1)
                at = int(rng.integers(0, min(n, 64) + 1)) if rng.random() < 0.4 else at
                data[at : at + size] = value.to_bytes(
                    size, "little" if rng.random() < 0.7 else "big"
                )
            case 4:
                del data[at:]
            case 5:
                data += bytes(rng.integers(0, 256, int(rng.integers(1, 200)), dtype=np.uint8))
            case 6:
                del data[at : at + length]
            case 7:
                data[at:at] = data[at : at + length]
            case 8:
                data[at : at + length] = bytes([int(rng.integers(0, 2)) * 255]) * length
            case 9:
                other = int(rng.integers(0, n + 1))
                data[at : at + length] = data[other : other + length]
            case 10 if rng.random() < 0.1:
                data.clear()
    return bytes(data)


def text(content: bytes, rng: Rng) -> bytes:
    """A number, a word or a line replaced, dropped, doubled or moved; or a fault in the bytes."""
    if rng.random() < 0.2:
        return anything(content, rng)
    t = content.decode("utf-8", "surrogateescape")
    for _ in range(int(rng.integers(1, 4))):
        lines = t.split("\n")
        i, j = (int(rng.integers(0, len(lines))) for _ in range(2))
        match int(rng.integers(0, 7)):
            case 0 | 1:
                t = _replace_one(t, r"-?\d+(\.\d+)?([eE][-+]?\d+)?", NUMBERS, rng)
            case 2:
                t = _replace_one(t, r"[A-Za-z_]+", TEXTS, rng)
            case 3:
                t = _replace_one(t, r"[^\w\s]", ("", "[", "{", '"', ",", "=", "\n"), rng)
            case 4:
                t = "\n".join(lines[:i] + lines[i + 1 :])
            case 5:
                t = "\n".join(lines[:i] + [lines[j]] + lines[i:])
            case 6:
                at = int(rng.integers(0, len(t) + 1))
                t = t[:at] + TEXTS[int(rng.integers(0, len(TEXTS)))] + t[at:]
    return t.encode("utf-8", "surrogateescape")


def _replace_one(t: str, pattern: str, choices: tuple[str, ...], rng: Rng) -> str:
    found = list(re.finditer(pattern, t))
    if not found:
        return t
    m = found[int(rng.integers(0, len(found)))]
    return t[: m.start()] + choices[int(rng.integers(0, len(choices)))] + t[m.end() :]


def json_file(content: bytes, rng: Rng) -> bytes:
    """A value of another type or size, a key dropped or renamed, deep nesting; or a fault in the
    text.
    """
    if rng.random() < 0.3:
        return text(content, rng)
    if rng.random() < 0.02:
        return b"[" * 200_000
    value = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        value = _json_step(value, rng)
    return json.dumps(value).encode()


def _json_step(value, rng: Rng):
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[int(rng.integers(0, len(value)))]
        match int(rng.integers(0, 8)):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {
                    (TEXTS[int(rng.integers(0, len(TEXTS)))] if k == key else k): v
                    for k, v in value.items()
                }
            case _:
                return value | {key: _json_step(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        i = int(rng.integers(0, len(value)))
        match int(rng.integers(0, 8)):
            case 0:
                return value[:i] + value[i + 1 :]
            case 1:
                return value[: i + 1] + value[i:]
            case _:
                return value[:i] + [_json_step(value[i], rng)] + value[i + 1 :]
    return VALUES[int(rng.integers(0, len(VALUES)))]


def array(a: np.ndarray, rng: Rng) -> np.ndarray:
    """Another type, shape, length or content."""
    match int(rng.integers(0, 9)):
        case 0:
            kinds = (
                np.int8,
                np.uint8,
                np.int32,
                np.int64,
                np.float16,
                np.float64,
                np.complex64,
                bool,
                "U3",
                "S2",
                "M8[s]",
            )
            try:
                return a.astype(kinds[int(rng.integers(0, len(kinds)))])
            except (ValueError, TypeError):
                return np.zeros(a.shape)
        case 1:
            return a[: int(rng.integers(0, len(a) + 1))] if a.ndim else a[None]
        case 2:
            return np.concatenate([a, a]) if a.ndim else np.stack([a, a])
        case 3:
            return a.reshape(-1)
        case 4:
            return a[..., None] if rng.random() < 0.5 else a.T
        case 5:
            return np.zeros((0, *a.shape[1:]), a.dtype)
        case 6:
            return np.float32("nan") * np.ones(a.shape, np.float32)
        case 7 if a.size and a.dtype.kind in "iuf":
            out = a.copy().reshape(-1)
            value = INTEGERS[int(rng.integers(0, len(INTEGERS)))]
            at = rng.integers(0, out.size, int(rng.integers(1, 4)))
            out[at] = (
                value
                if a.dtype.kind == "f"
                else np.array(value & (256**a.itemsize - 1), "u8")
                .astype(f"u{a.itemsize}")
                .view(a.dtype)
            )
            return out.reshape(a.shape)
        case _:
            return np.asarray(rng.integers(-5, 300, a.shape)).astype(
                a.dtype if a.dtype.kind in "iufb" else np.int64
            )


def npy(content: bytes, rng: Rng) -> bytes:
    """Another array, another header, or a fault in the bytes."""
    if rng.random() < 0.4:
        return anything(content, rng)
    if (
        rng.random() < 0.5
    ):  # the header alone: shapes that the data do not fill, types that hold code
        for old, new in (
            (r"\(\d+", f"({INTEGERS[int(rng.integers(0, len(INTEGERS)))]}"),
            (
                r"'<f8'|'<f4'|'<i4'",
                ("'|O'", "'<f8'", "'>i2'", "[('a','<f8')]", "'<U9'")[int(rng.integers(0, 5))],
            ),
            ("False", "True"),
        ):
            if rng.random() < 0.5:
                head = content[10 : 10 + struct.unpack("<H", content[8:10])[0]].decode("latin1")
                body = content[10 + len(head) :]
                head = re.sub(old, new, head, count=1).strip() + "\n"
                content = content[:8] + struct.pack("<H", len(head)) + head.encode("latin1") + body
        return content
    out = io.BytesIO()
    np.save(out, array(np.load(io.BytesIO(content)), rng), allow_pickle=False)
    return out.getvalue()


def npz(content: bytes, rng: Rng) -> bytes:
    """Arrays changed, dropped or renamed with a correct container around them; an entry that is no
    array; or a fault in the bytes.
    """
    if rng.random() < 0.25:
        return anything(content, rng)
    with np.load(io.BytesIO(content)) as data:
        arrays = {k: data[k] for k in data.files}
    for _ in range(int(rng.integers(1, 3))):
        if not arrays:
            break
        key = list(arrays)[int(rng.integers(0, len(arrays)))]
        match int(rng.integers(0, 8)):
            case 0:
                del arrays[key]
            case 1:
                arrays["other"] = arrays.pop(key)
            case 2:
                arrays[key] = np.array([{"code": 1}], dtype=object)
            case _:
                arrays[key] = array(arrays[key], rng)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def safetensors(content: bytes, rng: Rng) -> bytes:
    """The header's JSON changed and its length put right, or a fault in the bytes."""
    if rng.random() < 0.4:
        return anything(content, rng)
    (n,) = struct.unpack("<Q", content[:8])
    header = json_file(content[8 : 8 + n], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + n :]


ESCAPES = (
    "../x",
    "/x",
    "a/../../x",
    "..\\x",
    "C:\\x",
    "C:/x",
    "a\0b",
    "",
    ".",
    "./",
    "..",
    "a//b",
    "a/",
    "con",
    "x" * 300,
    "a/" * 300 + "x",
    "é",
    "\ufffe",
    "images",
    "images/a.jpg",
    " ",
    "~/x",
)


def zip_file(content: bytes, rng: Rng) -> bytes:
    """Members with other names, kinds and contents, or a fault in the bytes."""
    if rng.random() < 0.5:
        return anything(content, rng)
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as z,
        zipfile.ZipFile(
            out,
            "w",
            (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)[
                int(rng.integers(0, 4))
            ],
        ) as new,
    ):
        for info in z.infolist():
            body = z.read(info)
            if rng.random() < 0.3:
                info = zipfile.ZipInfo(ESCAPES[int(rng.integers(0, len(ESCAPES)))] or "x")
                info.external_attr = (
                    int((0o120777, 0o100644, 0o040755, 0o020644, 0)[int(rng.integers(0, 5))]) << 16
                )
            new.writestr(info, body)
    packed = out.getvalue()
    return anything(packed, rng) if rng.random() < 0.2 else packed


def tar_file(content: bytes, rng: Rng) -> bytes:
    """The same for tar, with links and devices, packed in one of four ways."""
    if rng.random() < 0.4:
        return anything(content, rng)
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as t,
        tarfile.open(
            fileobj=out, mode=("w", "w:gz", "w:xz", "w:bz2")[int(rng.integers(0, 4))]
        ) as new,
    ):
        for member in t.getmembers():
            body = t.extractfile(member) if member.isreg() else None
            if rng.random() < 0.3:
                member.name = ESCAPES[int(rng.integers(0, len(ESCAPES)))]
                member.type = (
                    tarfile.REGTYPE,
                    tarfile.SYMTYPE,
                    tarfile.LNKTYPE,
                    tarfile.CHRTYPE,
                    tarfile.DIRTYPE,
                    tarfile.FIFOTYPE,
                    tarfile.GNUTYPE_SPARSE,
                )[int(rng.integers(0, 7))]
                member.linkname = "/etc/passwd"
                member.mode = int(rng.integers(0, 0o7777))
            try:
                new.addfile(member, body if member.isreg() else None)
            except (ValueError, OSError):  # a name that tar cannot hold
                continue
    packed = out.getvalue()
    return anything(packed, rng) if rng.random() < 0.2 else packed


def ply(content: bytes, rng: Rng) -> bytes:
    """The header as text (counts, types, names), or a fault in the bytes."""
    if rng.random() < 0.4:
        return anything(content, rng)
    end = content.index(b"end_header\n")
    head = content[:end].decode()
    match int(rng.integers(0, 5)):
        case 0:
            head = re.sub(
                r"vertex \d+", f"vertex {INTEGERS[int(rng.integers(0, len(INTEGERS)))]}", head
            )
        case 1:
            head = _replace_one(
                head,
                r"float",
                ("double", "uchar", "int", "list uchar float", "list int int", "short", "x"),
                rng,
            )
        case 2:
            head = _replace_one(
                head, r"binary_little_endian", ("binary_big_endian", "ascii", "x"), rng
            )
        case _:
            return text(content[:end], rng) + content[end:]
    return head.encode() + content[end:]
