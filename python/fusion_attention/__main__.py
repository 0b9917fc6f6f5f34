"""`python -m fusion_attention <command>`: everything is in cli/."""

import sys

from fusion_attention.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
