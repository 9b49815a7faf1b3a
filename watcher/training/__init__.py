"""Train the networks, and judge them. Nothing here runs inside the daemon."""

import os

# torch reads this before its first allocation, and takes memory in huge pages. Each step makes a gradient of 100 MB
# anew, which otherwise costs 40,000 page faults, a tenth of the step's CPU time. No number changes. Where the kernel
# has no huge pages, nothing does.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
