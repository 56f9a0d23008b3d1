"""Inspection of deltas, weights and geometries before any surgery."""
