"""Functions with a real signature, made from a row of the catalog.

A public function must show its parameters to `help()`, to an editor and to `inspect.signature`, and must cost no
more than a function written by hand. So its source is put together from the row and compiled, as the standard
library does for namedtuple and dataclasses.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping
from typing import Any


def define(name: str, signature: str, body: str, names: Mapping[str, Any], doc: str) -> Callable[..., Any]:
    """A function called `name` with `signature`, whose body sees `names`.

    Parameters
    ----------
    name : str
        Its name.
    signature : str
        Its parameters as Python writes them, parentheses included.
    body : str
        Its statements, not indented.
    names : mapping
        The globals of the function.
    doc : str
        Its docstring.
    """
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    source = f"def {name}{signature}:\n{indented}"
    filename = f"<gradmark {name} {id(names):x}>"
    # A traceback then shows the lines of this source.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = dict(names)
    exec(compile(source, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace[name]
    function.__doc__ = doc
    function.__module__ = "gradmark"
    return function
