"""``python -m fq_toolkit`` is ``fq-toolkit``; ``accelerate launch -m fq_toolkit`` needs it."""

import sys

from fq_toolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
