# SPDX-License-Identifier: Apache-2.0
"""`python bench/run.py ...` is `selfattn bench ...`; README.md here says what the numbers mean."""

import os
import sys

# A core type forced on OpenBLAS would slow NumPy down; it is read when NumPy is imported.
os.environ.pop("OPENBLAS_CORETYPE", None)

from selfattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
