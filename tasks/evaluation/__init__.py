"""Evaluation: judges, win rates, slices, over-optimisation, and the report."""
