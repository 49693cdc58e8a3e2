"""Figures that anyone can run: `python -m bench.scale`, `bench.wire`, `bench.turns`, `bench.commit`.

Absolute times are noise on a shared machine: compare side by side in one run and quote ratios.
"""
