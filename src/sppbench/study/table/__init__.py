"""The table of a sweep: accuracies over seeds, beside the published ones, with a verdict for each cell."""
