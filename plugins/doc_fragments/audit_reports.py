# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reports that audits write."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  reports:
    description: Files to write, on the host where the module runs. They are made anew each time and count as no change.
    type: dict
    suboptions:
      json:
        description: Everything, for programs.
        type: path
      junit:
        description: Findings as failed test cases, for CI.
        type: path
      html:
        description: One self-contained page for people.
        type: path
  cluster_name:
    description: What reports call the cluster.
    type: str
    default: Kubernetes cluster
  report_template:
    description: Jinja2 template of the HTML report. By default the collection's own.
    type: str
"""
