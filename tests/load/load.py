#!/usr/bin/env python3
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Load of clients that do not retry, against loopback or a lab; see README.md beside this file."""

from __future__ import annotations

import sys

from plainkube_load.command import main

if __name__ == "__main__":
    sys.exit(main())
