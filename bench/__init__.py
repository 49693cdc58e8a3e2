"""Figures that anyone can run: `python -m bench.scale`, `python -m bench.commit`, ... Absolute times are noise; quote ratios."""
