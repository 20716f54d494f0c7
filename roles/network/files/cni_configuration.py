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


def cni_configuration(network: str, bridge: str, mtu: int) -> str:
    """Return the CNI configuration of a host whose pods have addresses in this network."""
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
                    "ranges": [[{"subnet": network}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
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


def configure(network: str, bridge: str, mtu: int) -> None:
    """Write the configuration if it is not there yet, and say so."""
    configuration = cni_configuration(network, bridge, mtu)
    if read(CONFIGURATION) != configuration:
        write(CONFIGURATION, configuration)
        print(f"wrote {CONFIGURATION} for {network}, packets of at most {mtu} bytes", flush=True)


def subnet_of(text: str) -> tuple[str, int]:
    """Return (network, longest packet in bytes) that a subnet file of flannel says. Raises ValueError."""
    said = dict(line.split("=", 1) for line in text.split() if "=" in line)
    missing = {"FLANNEL_SUBNET", "FLANNEL_MTU"} - set(said)
    if missing:
        raise ValueError(f"it does not say {' and '.join(sorted(missing))}")
    return str(ipaddress.ip_interface(said["FLANNEL_SUBNET"]).network), int(said["FLANNEL_MTU"])


def main() -> None:
    """Write the configuration for what flannel says; fail with its name when the file says nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subnet-file", required=True, help="file that flannel writes")
    parser.add_argument("--bridge", required=True, help="name of the bridge that pods are connected to")
    parser.add_argument("--mtu", type=int, default=0, help="longest packet of pods in bytes, 0 for what the file says")
    options = parser.parse_args()
    try:
        network, mtu = subnet_of(read(options.subnet_file))
    except ValueError as error:
        sys.exit(f"{options.subnet_file}: {error}; see what flanneld said before")
    configure(network, options.bridge, options.mtu or mtu)


if __name__ == "__main__":
    main()
