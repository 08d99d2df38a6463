"""Elementwise activations and their backward passes, one module a backend: same names, same order."""
