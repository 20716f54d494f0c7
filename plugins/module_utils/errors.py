# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one kind of error that plainkube code raises low and reports once, high up."""

from __future__ import annotations


class PlainkubeError(Exception):
    """Something a person has to know: the message names the object, what was found, what was wanted and what to do."""
