#!/usr/bin/python3
# Managed by plainkube.cluster, role network.
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes the CNI configuration of a host: its pods hang on a bridge and have addresses of the node's own network.

As a program it takes the network and the longest packet from the file in which flannel says them.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
from pathlib import Path

CONFIGURATION = "/etc/cni/net.d/10-plainkube.conflist"


# The way out of a pod, by whether its network is one of IPv6.
DEFAULT_ROUTES = {False: "0.0.0.0/0", True: "::/0"}


def cni_configuration(networks: list[str], bridge: str, mtu: int) -> str:
    """Return the CNI configuration of a host whose pods have an address in each of these networks."""
    configuration = {
        "cniVersion": "1.0.0",
        "name": "plainkube",
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isGateway": True,
                # A pod may reach itself through its own Service.
                "hairpinMode": True,
                "mtu": mtu,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": network}] for network in networks],
                    "routes": [{"dst": DEFAULT_ROUTES[":" in network]} for network in networks],
                },
            },
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": True}},
        ],
    }
    return json.dumps(configuration, indent=2) + "\n"


def read(path: str) -> str:
    """Return a file's text, empty when there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def write(path: str, text: str) -> None:
    """Replace a file as a whole, readable by root alone."""
    # A name that no CNI runtime takes for a configuration.
    temporary = path + ".new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    Path(temporary).rename(path)


def configure(networks: list[str], bridge: str, mtu: int) -> None:
    """Write the configuration if it is not there yet, and say so."""
    configuration = cni_configuration(networks, bridge, mtu)
    if read(CONFIGURATION) != configuration:
        write(CONFIGURATION, configuration)
        print(f"wrote {CONFIGURATION} for {' and '.join(networks)}, packets of at most {mtu} bytes", flush=True)


def subnets_of(text: str) -> tuple[list[str], int]:
    """Return (networks, longest packet in bytes) that a subnet file of flannel says. Raises ValueError."""
    said = dict(line.split("=", 1) for line in text.split() if "=" in line)
    missing = {"FLANNEL_SUBNET", "FLANNEL_MTU"} - set(said)
    if missing:
        raise ValueError(f"it does not say {' and '.join(sorted(missing))}")
    subnets = [said[name] for name in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET") if name in said]
    return [str(ipaddress.ip_interface(subnet).network) for subnet in subnets], int(said["FLANNEL_MTU"])


def main() -> None:
    """Write the configuration for what flannel says; fail with its name when the file says nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subnet-file", required=True, help="file that flannel writes")
    parser.add_argument("--bridge", required=True, help="name of the bridge that pods are connected to")
    parser.add_argument("--mtu", type=int, default=0, help="longest packet of pods in bytes, 0 for what the file says")
    parser.add_argument("--overhead", type=int, default=0, help="bytes of a tunnel that the file does not know of")
    options = parser.parse_args()
    try:
        networks, mtu = subnets_of(read(options.subnet_file))
    except ValueError as error:
        sys.exit(f"{options.subnet_file}: {error}; see what flanneld said before")
    configure(networks, options.bridge, options.mtu or mtu - options.overhead)


if __name__ == "__main__":
    main()
