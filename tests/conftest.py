"""One thread for all tests: their tensors are small, and OpenMP's threads spin for each other.

Beside another busy process two threads took 210 s for what one does in 10 s.
"""

import os

import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
