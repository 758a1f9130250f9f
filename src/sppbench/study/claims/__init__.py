"""The claims of the study and one of our own, each with a verdict from what runs left on disk."""
