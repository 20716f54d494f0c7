# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The labs of this checkout can be made, all at the same time."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.plainkube.cluster.tests.lab.plainkube_lab.cli import read_inventory

CHECKOUT = Path(__file__).resolve().parents[2]


def test_labs_have_names_addresses_and_ports_of_their_own() -> None:
    scenarios = sorted(CHECKOUT.glob("molecule/*/inventory"))
    others = [*sorted(CHECKOUT.glob("tests/faults/inventories/*")), CHECKOUT / "inventories" / "lab"]
    labs = [read_inventory(path) for path in [*scenarios, *others]]
    assert [lab.name for lab in labs] == [*(path.parent.name for path in scenarios), *(path.name for path in others)]
    taken = [
        place
        for lab in labs
        for node in lab.nodes
        for place in [(node.address, node.port), *((node.address, forward.port) for forward in node.forwards)]
    ]
    assert len(taken) == len(set(taken))
    networks = [lab.subnet for lab in labs if lab.of_kind("container")]
    assert len(networks) == len(set(networks))
