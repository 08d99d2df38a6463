"""Gated units, an activation of one half of x times the other half, one module a backend."""
