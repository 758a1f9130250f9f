"""A history to a matplotlib figure; no files, no loggers."""
