"""python -m nets.zoo"""

import sys

from nets.zoo.command import main

sys.exit(main())
