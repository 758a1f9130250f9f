"""Tensors to sums over channels, and sums to statistics; torch only."""
