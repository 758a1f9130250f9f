"""The study's claims, each with a verdict from what runs left on disk."""
