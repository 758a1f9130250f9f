"""Stored runs, read back: the ground of the table, the figures, the claims and the report.

It reads files only, either the full histories of runs or their compact form (see `sppbench.evidence.epochs`), and gives
the same numbers for both.
"""
