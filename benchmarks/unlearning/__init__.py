"""Evidence for cleaning an unlearned checkpoint: settings, then models, then comparisons at equal forgetting.

`settings.py` was written, with its reasons, before any cleaning result. See `python -m benchmarks.unlearning --help`.
"""
