"""Work on many files at once in threads: ordered, bounded in memory, with progress on a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    description: str,
    unit: str = "file",
    block: int = 64,
) -> Iterator[Result]:
    """Results of ``function`` in the order of ``items``, whatever the number of ``workers``.

    Items travel in blocks, since a future for each of a million headers costs more than the header, and only a few
    blocks a worker are under way. The first exception of ``function`` ends the work and is raised here. Progress goes
    to stderr, on a terminal only.
    """
    pending: deque[Future[list[Result]]] = deque()

    def run(part: Sequence[Item]) -> list[Result]:
        return [function(item) for item in part]

    pool = ThreadPoolExecutor(max(1, workers))
    try:
        with tqdm(total=len(items), desc=description, unit=unit, disable=None) as bar:
            for first in range(0, len(items), block):
                pending.append(pool.submit(run, items[first : first + block]))
                if len(pending) >= 4 * max(1, workers):
                    yield from _advance(bar, pending.popleft().result())
            while pending:
                yield from _advance(bar, pending.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def _advance(bar: tqdm[NoReturn], results: list[Result]) -> list[Result]:
    bar.update(len(results))
    return results
