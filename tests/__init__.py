"""The tests, and what they are run with: without a GPU, Triton's interpreter, which must be told before its import."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
