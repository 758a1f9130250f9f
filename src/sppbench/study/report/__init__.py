"""All that stored runs say, on one HTML page that needs no network."""
