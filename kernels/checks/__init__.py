"""Kernels against their twins, on painted scenes: for tests and for a user's machine."""
