"""Measurement and what is decided by it."""
