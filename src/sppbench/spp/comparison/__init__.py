"""Two histories beside each other: which values belong together, how far they may differ, where they depart."""
