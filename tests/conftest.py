"""Hooks of pytest that all tests share."""

from __future__ import annotations


def pytest_configure(config):
    # In a plain run benchmarks only show that they run; `pytest --benchmark-only` times them.
    if not config.getoption("benchmark_only"):
        config.option.benchmark_disable = True
