# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The CNI configuration that units write on a host."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cni_configuration
import pytest

SUBNET_FILE = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


def test_pods_get_addresses_of_their_own_node() -> None:
    bridge, portmap = json.loads(cni_configuration.cni_configuration(["10.244.1.0/24"], "cni0", 1450))["plugins"]
    assert (bridge["bridge"], bridge["mtu"]) == ("cni0", 1450)
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}]]
    assert portmap["capabilities"] == {"portMappings": True}


def test_pods_get_an_address_and_a_way_out_for_each_network() -> None:
    text = cni_configuration.cni_configuration(["10.244.1.0/24", "fd00:10:244:1::/64"], "cni0", 1450)
    ipam = json.loads(text)["plugins"][0]["ipam"]
    assert ipam["ranges"] == [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]
    assert ipam["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


def test_flannel_says_both_networks_and_not_what_ipv6_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "subnet.env", tmp_path / "10-plainkube.conflist"
    of_ipv6 = "FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n"
    source.write_text(SUBNET_FILE + of_ipv6)
    monkeypatch.setattr(cni_configuration, "CONFIGURATION", str(target))
    monkeypatch.setattr(sys, "argv", ["x", f"--subnet-file={source}", "--bridge=cni0", "--mtu=0", "--overhead=20"])
    cni_configuration.main()
    bridge = json.loads(target.read_text())["plugins"][0]
    assert bridge["mtu"] == 1430
    assert bridge["ipam"]["ranges"][1] == [{"subnet": "fd00:10:244:1::/64"}]
    assert "for 10.244.1.0/24 and fd00:10:244:1::/64, packets of at most 1430 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(("chosen", "expected"), [("0", 1450), ("1400", 1400)])
def test_what_flannel_says_is_written_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chosen: str,
    expected: int,
) -> None:
    source, target = tmp_path / "subnet.env", tmp_path / "10-plainkube.conflist"
    source.write_text(SUBNET_FILE)
    monkeypatch.setattr(cni_configuration, "CONFIGURATION", str(target))
    monkeypatch.setattr(sys, "argv", ["x", f"--subnet-file={source}", "--bridge=pods0", f"--mtu={chosen}"])
    cni_configuration.main()
    bridge = json.loads(target.read_text())["plugins"][0]
    assert (bridge["bridge"], bridge["mtu"]) == ("pods0", expected)
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}]]
    assert target.stat().st_mode & 0o777 == 0o600
    assert "10.244.1.0/24" in capsys.readouterr().out
    first = target.stat().st_ino
    cni_configuration.main()
    assert target.stat().st_ino == first
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["", "FLANNEL_SUBNET=10.244.1.1/24\n", "FLANNEL_SUBNET=x\nFLANNEL_MTU=1450\n"])
def test_a_file_that_says_too_little_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    source = tmp_path / "subnet.env"
    source.write_text(text)
    monkeypatch.setattr(sys, "argv", ["x", f"--subnet-file={source}", "--bridge=cni0"])
    with pytest.raises(SystemExit, match=r"subnet\.env: "):
        cni_configuration.main()
