"""The assembly of compiled kernels, for tests that read it."""

from gradmark.tracking.check import assembly


def text_of(compiled):
    """The assembly of the one overload, whether this process has compiled it or found it in the cache.

    So a kernel is not compiled once more to be read: the cache holds its optimized bitcode, of which LLVM writes the
    assembly again. It is what runs here.
    """
    (overload,) = compiled.overloads.values()
    return assembly._assembly(overload.library)
