"""One run, from a configuration to a test accuracy, and sweeps of many."""
