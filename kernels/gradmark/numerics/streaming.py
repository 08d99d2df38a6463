"""Stores that go past the caches, for outputs that will not fit there.

An ordinary store first reads the line that it is about to overwrite. For an output beyond the last-level cache that is
a third of a forward pass's traffic. A non-temporal store of a whole line spares it (Intel 64 and IA-32 Architectures
Optimization Reference Manual, chapter on software prefetch and non-temporal stores).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable

LINE = 64
"""Bytes of a cache line on x86-64 and most ARM processors."""
ASSUMED_LAST_LEVEL_CACHE = 32 * 2**20
"""Bytes, where the machine does not tell: the L3 that the cores of one AMD Zen chiplet share, a common size."""


def last_level_cache() -> int:
    """Bytes of the last-level cache of the first CPU, as Linux tells it."""
    sizes = []
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            text = (index / "size").read_text().strip()
        except OSError:
            continue
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[text[-1]])
    return max(sizes, default=ASSUMED_LAST_LEVEL_CACHE)


@intrinsic
def _store_line(typing_context: Any, source: Any, start: Any, target: Any, place: Any) -> Any:
    """One line from source[start:] to target[place:], whose address is a multiple of LINE."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        item = context.get_value_type(source.dtype)
        line = ir.VectorType(item, LINE // (source.dtype.bitwidth // 8))
        pointers = []
        for kind, array, index in ((source, 0, 1), (target, 2, 3)):
            data = context.make_array(kind)(context, builder, arguments[array]).data
            pointers.append(builder.bitcast(builder.gep(data, [arguments[index]]), line.as_pointer()))
        value = builder.load(pointers[0], align=source.dtype.bitwidth // 8)
        store = builder.store(value, pointers[1], align=LINE)
        one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        store.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.void(source, start, target, place), generate


@intrinsic
def fence(typing_context: Any) -> Any:
    """Non-temporal stores become visible to other threads in no order; a fence puts them before what follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@register_jitable
def store_past_caches(source: Any, target: Any) -> None:
    """target[...] = source for contiguous 1-d arrays: whole lines past the caches, the rest of both ends as ever.

    `fence` must follow before another thread may read the target.
    """
    per_line = LINE // target.itemsize
    head = min((-target.ctypes.data % LINE) // target.itemsize, target.size)
    for i in range(head):
        target[i] = source[i]
    lines = (target.size - head) // per_line
    for line in range(lines):
        place = head + line * per_line
        _store_line(source, place, target, place)
    for i in range(head + lines * per_line, target.size):
        target[i] = source[i]
