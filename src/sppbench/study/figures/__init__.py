"""The study's figures and the ones that it lacks, from what runs recorded."""
