#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes, shows, restarts and removes the nodes of a lab; see README.md beside this file."""

from __future__ import annotations

import sys

from plainkube_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
