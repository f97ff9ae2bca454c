"""`python -m examples.vqvae train|evaluate ...`."""

import sys

from examples.vqvae.commands import main

sys.exit(main(sys.argv[1:]))
