"""The node as a process, around the exact reconstruction; started by tests."""

import sys

from exact_core import ExactCore

from recon4d_ros.ros.node import main

if __name__ == "__main__":
    sys.exit(main(sys.argv, build_core=ExactCore))
