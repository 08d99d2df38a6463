"""The machine's caches, and which size lies where: `python -m benchmarks.machine`."""

from __future__ import annotations

from ._worktree import catalog, workloads


def track_last_level_cache() -> int:
    """Bytes of the last-level cache: a history across two machines of one name would show here."""
    return workloads.last_level_cache() or 0


track_last_level_cache.unit = "bytes"
track_last_level_cache.version = "1"


def describe() -> str:
    """The caches, and the home of every timed size."""
    found = workloads.caches()
    lines = [f"L{level} cache: {size / 2**20:g} MiB" for level, size in found]
    if not found:
        assumed = workloads.ASSUMED_LAST_LEVEL_CACHE / 2**20
        lines.append(f"The machine does not tell its caches; the last one is taken to have {assumed:g} MiB.")
    last = workloads.last_level_cache() or workloads.ASSUMED_LAST_LEVEL_CACHE
    for size in workloads.TIMED_SIZES:
        lines.append(f"{size}: {workloads.SIZES[size]}")
        for operation_pass, bytes_moved in _footprints(size).items():
            lines.append(f"    an activation's {operation_pass}: {_home(bytes_moved, found, last)}")
    return "\n".join(lines)


def _footprints(size: str) -> dict[str, int]:
    array = 4 * {"cache": 2**16, "memory": 2**24}[size]
    return {catalog.FORWARD: 2 * array, catalog.BACKWARD: 3 * array}


def _home(bytes_moved: int, found: list[tuple[int, int]], last: int) -> str:
    text = f"{bytes_moved / 2**20:g} MiB"
    if bytes_moved >= 2 * last:
        return f"{text}, in memory"
    for level, size in sorted(found):
        if bytes_moved <= size:
            return f"{text}, in the L{level} cache"
    return f"{text}, between the last-level cache and memory: the size memory is skipped"


if __name__ == "__main__":
    print(describe())  # noqa: T201
