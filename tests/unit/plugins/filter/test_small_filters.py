# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The small filters and tests that templates use."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.plainkube.cluster.plugins.filter.address_in import address_in
from ansible_collections.plainkube.cluster.plugins.filter.registry_hosts_files import registry_hosts_files
from ansible_collections.plainkube.cluster.plugins.filter.without_empty import without_empty
from ansible_collections.plainkube.cluster.plugins.test.ip_address import is_ip_address


def test_only_what_somebody_emptied_is_left_out() -> None:
    assert without_empty({"a": "", "b": None, "c": 0, "d": False, "e": "x"}) == {"c": 0, "d": False, "e": "x"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("192.0.2.1", True), ("2001:db8::1", True), ("api.example.org", False), ("192.0.2.0/24", False), ("", False)],
)
def test_addresses_are_told_from_names(text: str, expected: bool) -> None:
    assert is_ip_address(text) is expected


def test_wrong_input_fails_as_a_filter_does() -> None:
    with pytest.raises(AnsibleFilterError, match="no address number 1"):
        address_in("nowhere", 1)
    with pytest.raises(AnsibleFilterError, match="is no URL"):
        registry_hosts_files({"docker.io": ["nowhere"]})
