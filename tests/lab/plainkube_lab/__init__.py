# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Labs: nodes on one machine, as containers or virtual machines, that behave like hosts reached over SSH."""
