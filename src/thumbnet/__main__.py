"""``python -m thumbnet`` is the command ``thumbnet``."""

import sys

from thumbnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
