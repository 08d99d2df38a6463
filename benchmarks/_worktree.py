"""The catalog and the workloads of the working tree, loaded by path.

`import gradmark` in a benchmark's process gives the commit that is being timed. asv keeps parameters by their index,
so a list taken from there would give the numbers of old commits to other operations.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = "gradmark_worktree"


def _load(name: str) -> ModuleType:
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(ROOT / "kernels" / "gradmark")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")


catalog = _load("catalog")
workloads = _load("workloads")
