"""Figures that anyone can run: `python -m bench` for a short tour, `python -m bench.NAME` for one of them.

Absolute times are noise on a shared machine: two sides are measured in turn, in one run, and what is quoted is the
median of the ratios and their spread. What each finds and the figures to reach: docs/performance.md.
"""
