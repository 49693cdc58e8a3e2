"""The rules: deciders of one shape (commands in, events out) and plain calculators. Nothing here waits, reads a clock,
opens a file or logs. A decider's file reads top to bottom: theory, commands, events, effects, state, LEGAL, decide,
evolve, helpers.
"""
