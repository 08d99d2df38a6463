"""Compiled Numba kernels on disk, under a key that no edit can make stale.

Numba's own `cache=True` looks at the file of the cached function alone: an edit of a function that it calls in
another module goes unnoticed, and the old machine code runs on. Here the key is a hash of all of gradmark's kernel
sources. Numba adds the signature, the processor and its own version.

The folder is $GRADMARK_CACHE_DIR/numba, by default in the user's cache folder; it may be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import platformdirs
from numba.core import caching
from numba.core.registry import cpu_target

_KEPT_VERSIONS = 8


def jit(function: Callable[..., Any], signature: Any, *, name: str, parallel: bool = False) -> Callable[..., Any]:
    """Compile `function` for `signature`, or load what was compiled before.

    Parameters
    ----------
    function : callable
        The Python function. It may be a closure over other compiled functions and constants.
    signature : numba signature
        Inputs declared read-only accept writeable arrays too, so that one compilation serves both.
    name : str
        Unique among gradmark's kernels; together with the signature it identifies the machine code.
    parallel : bool
        Whether Numba parallelizes its `prange` loops.
    """
    function = _named(function, name)
    dispatcher = numba.njit(nogil=True, error_model="numpy", parallel=parallel)(function)
    dispatcher._cache = _KernelCache(function, name, signature)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    compiled: Callable[..., Any] = dispatcher
    return compiled


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A copy of the function under the kernel's own name.

    Numba names machine code after the function, the types, and a number that counts the functions of the process. A
    kernel from the cache has the number of the process that compiled it: of two kernels of one name, one from the cache
    and one compiled here, a third that calls the first may then be linked with the second. It happened: a parallel
    tanhshrink_backward ran the loop of relu_backward.
    """
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__qualname__ = f"{function.__qualname__}.{name}"
    copy.__module__ = function.__module__
    return copy


def folder() -> Path:
    """Where the machine code of this version of the sources lies."""
    base = os.environ.get("GRADMARK_CACHE_DIR") or platformdirs.user_cache_dir("gradmark", appauthor=False)
    return Path(base) / "numba" / source_hash()


@functools.cache
def source_hash() -> str:
    """A hash of every source file below the package's kernel folders."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for subpackage in ("numerics", "activations", "gated", "rowwise", "initializers", "stabilizers"):
        for path in sorted((package / subpackage).glob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):  # type: ignore[misc]
    """Names our folder; the sources' hash is part of it, so the stamp never changes."""

    _py_file = "gradmark"

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return source_hash()

    def get_disambiguator(self) -> str:
        return "kernel"

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls()


class _KernelImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class _KernelCache(caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, under a name of ours instead of its closure's pickle.

    A closure over compiled functions pickles differently in every process, so that Numba would never hit.

    Each signature has an index file of its own. In an index of several, two processes that compile at the same time
    give the same data file to two signatures, and the next process runs the machine code of the wrong one. It
    happened: a float32 batch norm was off by 10^7 ULP until the folder was deleted.
    """

    _impl_class = _KernelImpl

    def __init__(self, function: Callable[..., Any], name: str, signature: Any) -> None:
        super().__init__(function)
        self._kernel = name
        # The processor too: a home folder may be shared by several machines.
        codegen = cpu_target.target_context.codegen()
        digest = hashlib.sha256(repr((signature, codegen.magic_tuple())).encode()).hexdigest()[:16]
        self._cache_file = caching.IndexDataCacheFile(
            cache_path=str(folder()), filename_base=f"{name}-{digest}.py{_python_tag()}", source_stamp=source_hash()
        )

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple(), self._kernel

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            # A damaged entry can fail in any way that unpickling can. It costs a compilation, not the call.
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            new = not folder().exists()
            super().save_overload(sig, data)
            if new:
                _forget_old_versions(folder().parent)
        except Exception:
            # A read-only or full disk, or an index that is damaged: the next process compiles again, nothing else.
            return


def _python_tag() -> str:
    return f"{sys.version_info.major}{sys.version_info.minor}"


def _forget_old_versions(parent: Path) -> None:
    versions = sorted(parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for version in versions[_KEPT_VERSIONS:]:
        shutil.rmtree(version, ignore_errors=True)
