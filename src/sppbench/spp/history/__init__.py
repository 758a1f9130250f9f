"""Readings on disk, and back."""
