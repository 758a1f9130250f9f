"""Modules to readings: the probes; torch, and pandas for tables."""
