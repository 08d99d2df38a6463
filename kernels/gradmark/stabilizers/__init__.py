"""Batch normalization, gradient clipping and residual addition, one module a backend."""
