"""Columns named with dots: `a.b` is the field b of a column a of structs or objects, unless a column has that name."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Inside = TypeVar("Inside")
Named = Iterable[tuple[str, Inside]]
"""Names, each with what is inside of it."""


def paths(name: str, named: Named[Inside], inside: Callable[[Inside], Named[Inside]]) -> list[list[str]]:
    """Returns all ways to read `name` as names joined by dots. The names may have dots themselves."""
    found = []
    for first, value in named:
        if first == name:
            found.append([name])
        elif name.startswith(f"{first}."):
            rest = name.removeprefix(f"{first}.")
            found += [[first, *path] for path in paths(rest, inside(value), inside)]
    return found
