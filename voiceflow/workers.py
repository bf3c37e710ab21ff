"""Many jobs of one kind on several processes, answered in order."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

FEW = 64
"""So many jobs or fewer are done before other processes have started."""


def in_parallel(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], *, num_workers: int = 0, few: int = FEW
) -> Iterator[Any]:
    """Results in the order of the jobs.

    Args:
        function: What to do with the arguments of each job; a function of a module, so that processes find it.
        jobs: Arguments.
        num_workers: Processes; 0 takes all cores.
        few: So many jobs or fewer stay in this process.
    """
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1 or len(jobs) <= few:
        for job in jobs:
            yield function(*job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as executor:
        yield from executor.map(function, *zip(*jobs, strict=True), chunksize=4)
