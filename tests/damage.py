"""Damage to files of a known structure, as a function of a seed, for tests/fuzz.py."""

from __future__ import annotations

import io
import json
import tomllib
from random import Random
from typing import Any

import tomli_w

NUMBERS = [0, 1, -1, 2, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63)]
VALUES: list[Any] = [
    *NUMBERS, 10**40, 0.5, -0.0, 1e308, 1e-320, True, False, "", "x", "\0", "..", "/", "é🥚", "a" * 5000, [], {}, [[]],
    [1, 2], {"a": 1}, None,
]  # fmt: skip
_TOKENS = [b"null", b"-NaN", b"Infinity", b"1e999", b"[" * 3000, b"{", b'"', b"\\ud800", b"\xff", b"\0", b"\n", b","]


def damage(content: bytes, kind: str, random: Random) -> bytes:
    """The content with one to four changes."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if kind != "binary" and random.random() < 0.6:
            try:
                content = _STRUCTURED[kind](content, random)
                continue
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
                pass
        content = _damage_bytes(content, random)
    return content


def _damage_bytes(content: bytes, random: Random) -> bytes:
    data = bytearray(content)
    size = len(data)
    # Headers and footers have more structure than what is between them.
    place = random.choice(
        (random.randrange(size + 1), min(random.randrange(64), size), max(size - random.randrange(400), 0))
    )
    length = min(random.choice((1, 1, 2, 4, 8, random.randrange(1, 200))), size - place)
    choice = random.randrange(8)
    if choice == 0 and place < size:
        data[place] ^= 1 << random.randrange(8)
    elif choice == 1 and place < size:
        data[place] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
    elif choice == 2:
        return bytes(data[:place])
    elif choice == 3:
        del data[place : place + length]
    elif choice == 4:
        data[place:place] = data[place : place + length]
    elif choice == 5:
        width = random.choice((2, 4, 8))
        data[place : place + width] = (random.choice(NUMBERS) % 256**width).to_bytes(width, "little")
    elif choice == 6:
        data[place:place] = random.choice(_TOKENS)
    else:
        other = random.randrange(size + 1)
        data[place : place + length] = data[other : other + length]
    return bytes(data)


def _replace_value(document: Any, random: Random) -> Any:
    """A parsed document with one value replaced, removed or added, at a random depth."""
    if isinstance(document, dict) and document and random.random() < 0.9:
        key = random.choice(list(document))
        change = random.randrange(12)
        if change == 0:
            return {name: value for name, value in document.items() if name != key}
        if change == 1:
            return {**document, random.choice(("x", "", "é", key + "x")): document[key]}
        return {**document, key: _replace_value(document[key], random)}
    if isinstance(document, list) and document and random.random() < 0.8:
        place = random.randrange(len(document))
        return [*document[:place], _replace_value(document[place], random), *document[place + 1 :]]
    if isinstance(document, int) and random.random() < 0.3:
        return document + random.choice((-1, 1))
    return random.choice(VALUES)


def _damage_json(content: bytes, random: Random) -> bytes:
    """One line of JSON lines, or the document."""
    lines = content.splitlines(keepends=True)
    if len(lines) > 1 and not content.startswith(b"{\n"):
        place = random.randrange(len(lines))
        changed = json.dumps(_replace_value(json.loads(lines[place]), random)).encode() + b"\n"
        return b"".join([*lines[:place], changed, *lines[place + 1 :]])
    return json.dumps(_replace_value(json.loads(content), random), indent=random.choice((None, 2))).encode()


def _damage_toml(content: bytes, random: Random) -> bytes:
    return tomli_w.dumps(_replace_value(tomllib.loads(content.decode()), random)).encode()


def _damage_safetensors(content: bytes, random: Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(_replace_value(json.loads(content[8 : 8 + size]), random)).encode()
    return (len(header) + random.choice((0, 0, 0, 1, -1))).to_bytes(8, "little") + header + content[8 + size :]


def _damage_npy(content: bytes, random: Random) -> bytes:
    size = int.from_bytes(content[8:10], "little")
    old = content[10 : 10 + size].decode("latin-1")
    descriptor = random.choice(("'|u1'", "'<i8'", "'|O'", "'<M8'", "'|V0'", "'<U3'", "[('a','|u1')]", "'x'", "7"))
    shape = random.choice(
        (f"({random.choice(VALUES)!r},)", f"({random.choice(NUMBERS)},{random.choice(NUMBERS)})", "()")
    )
    header = random.choice((
        f"{{'descr': {descriptor}, 'fortran_order': False, 'shape': {shape}, }}",
        f"{{'descr': '|u1', 'fortran_order': {random.choice(VALUES)!r}, 'shape': {shape}, }}",
        old.replace("(", random.choice(("(", "((", "[")), 1),
    )).encode("latin-1", "replace")  # fmt: skip
    version = bytes([random.choice((1, 1, 1, 2, 3, 9)), 0])
    out = io.BytesIO()
    out.write(content[:6] + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header)
    return out.getvalue() + content[10 + size :]


_STRUCTURED = {
    "json": _damage_json,
    "toml": _damage_toml,
    "safetensors": _damage_safetensors,
    "npy": _damage_npy,
}
