"""What is wrong in a recorded training, and why: see `sppbench.spp.diagnose`."""
