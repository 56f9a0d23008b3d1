"""Measurements of the budgets: run each as `python -m benchmarks.NAME` in a checkout; none is a part of the package."""
