"""Training and judging of the networks. Nothing here runs inside the daemon."""

import os

# Asks torch, before its first allocation, to take memory in huge pages: without
# them a third of a training step goes into page faults of the 100 MB gradient
# that every step makes anew. Changes no number; where the kernel has none, nothing.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
