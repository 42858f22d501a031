# SPDX-License-Identifier: Apache-2.0
"""``python -m selfattn`` is the command ``selfattn``."""

import sys

from selfattn.cli import main

if __name__ == "__main__":
    sys.exit(main())
