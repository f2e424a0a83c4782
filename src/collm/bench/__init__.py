"""Benchmarks: baselines, shaped links and reports."""
