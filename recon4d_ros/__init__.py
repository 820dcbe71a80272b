"""Live dynamic 4D reconstruction from one ordinary camera."""

import os

__version__ = "0.1.0"

# The linear algebra here is on small matrices, where waiting for a second BLAS thread costs more
# than it saves, and one thread adds in one order: results repeat themselves. Read by OpenBLAS when
# numpy is imported; what the user has set is kept.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
