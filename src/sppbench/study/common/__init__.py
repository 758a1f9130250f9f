"""What table, figures, claims and report share."""
