"""``sppbench look``: one forward and backward pass of any net at its initialization."""
