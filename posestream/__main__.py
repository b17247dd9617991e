"""`python -m posestream`: the console command."""

import sys

from posestream.command import main

if __name__ == "__main__":
    sys.exit(main())
