"""Registries: a name in a configuration stands for a class or function that registered itself under it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from speakerkit.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to builders, with an error for an unknown name that lists the nearest ones.

    Args:
        kind: what the entries are, for messages ("backbone", "augmentation").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters its argument under ``name``; a second entry of that name is an error."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ConfigError(f"{self.kind} {name!r}", "is not known", suggest(name, list(self._entries)))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def suggest(name: str, known: list[str]) -> str:
    """The remedy for an unknown name: the nearest known one, or all of them."""
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f"did you mean {lower[near[0]]!r}?" if near else f"choose from {', '.join(sorted(known))}"
