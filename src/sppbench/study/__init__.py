"""What stored runs say about the study: its table, its figures and its claims, and a page with all of them."""
