"""The tests of this repository."""

import os

# Networks and images as small as those of the tests are computed faster by one thread: several wait for each other and
# burn CPU time meanwhile. It is set before numpy and torch are imported. The product sets its threads itself.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
