"""The command ``sppbench compare``: two runs on disk, side by side."""
