"""Weight initializers, one module a backend: same names, same order."""
