#!/usr/bin/python
# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: health
short_description: See that what was built works
description:
  - Does named checks on the host, all at once, each until it passes or the deadline is over.
  - A failure names each check that failed, what was expected and seen, what to do, and the last lines of the journal.
  - In check mode each check is done once, and a failed one is reported instead of failing the task.
version_added: 0.1.0
author: Plainkube contributors
options:
  checks:
    description: Names of the checks.
    type: list
    elements: str
    required: true
  deadline:
    description: Seconds until all checks must have passed.
    type: int
    default: 60
  definitions:
    description:
      - Definitions of checks by name, by default the variable C(cluster_checks). Only the named ones are rendered.
      - "C(type) is one of those below; other keys are the type's. Each may have C(unit) (its journal explains a
        failure), C(hint) (what to do about a failure) and C(timeout) (seconds for one attempt, by default 3)."
      - "C(http): C(url), C(ca), C(certificate), C(key), C(server_name), C(status) (200), C(contains),
        C(host) to ask for another name than the URL's."
      - "C(http) on loopback may have C(insecure), for servers that make their certificate themselves."
      - "C(http_any): the same with C(urls); one that answers is enough, and so is an empty list."
      - "C(dial): the pod that agnhost's netexec serves at C(via) reaches C(target) (host:port) and is answered with
        C(contains)."
      - "C(unfragmented): a packet as long as the link of the pod with the address C(source) allows, or of C(bytes),
        sent from that pod's network with don't-fragment, is echoed by C(host) at UDP C(port)."
      - "C(proxy_rules): kube-proxy's nftables table has no more rules than Services explain. Says how many there are."
      - "C(not_applicable): there is nothing to prove; C(why)."
      - "C(http_all): each of C(requests), with C(url) and perhaps C(status) and C(host), is answered as wanted;
        C(own_address) is an address of this host, whose servers need no known certificate."
      - "C(unit): C(name) of a unit that is active."
      - "C(tcp): C(host), C(port)."
      - "C(command): C(argv) succeeds and prints C(contains)."
      - "C(file): C(path) exists."
      - "C(dns): C(server), C(port) (53), C(name), C(record) (A or AAAA), C(expect) (an address or a list)."
      - >-
        C(dns_chain): the cache at C(server), C(port) (53), answers C(name) with C(expect), and says anything but that
        it failed for each name of C(outside). When it does not, the name server behind it, at C(behind),
        C(behind_port) (53), is asked too.
      - "C(etcd_members): C(endpoints), one for each member, C(ca), C(certificate), C(key), C(expect_healthy): C(all),
        C(quorum) or C(others_safe), which means that a majority stays when the member C(own), one of the endpoints,
        goes down."
      - "C(etcd_first_start): C(data_dir) has data, or no cluster at C(endpoints) remembers that C(member) had some;
        C(ca), C(certificate), C(key)."
      - "C(etcd_leads): the member at C(endpoint) leads its cluster; C(ca), C(certificate), C(key)."
      - "C(etcd_agreement): the members at C(endpoints) hold the same data, by HashKV at one revision; C(ca),
        C(certificate), C(key)."
      - "C(node_ready): C(url), C(ca), C(certificate), C(key), C(name). C(nodes_ready): the same with C(names)."
    type: dict
attributes:
  check_mode:
    support: full
    description: Does not change anything and then does not fail either.
  diff_mode:
    support: none
    description: There is nothing that changes.
"""

EXAMPLES = r"""
- name: See that the API server answers and knows this node as ready
  plainkube.cluster.health:
    checks: [apiserver-ready, node-ready]
    deadline: 60
    definitions:
      apiserver-ready:
        type: http
        url: https://127.0.0.1:6443/readyz
        ca: /etc/kubernetes/pki/ca.crt
        contains: ok
        unit: kube-apiserver.service
        hint: See which part is not ready with /readyz?verbose.
      node-ready:
        type: node_ready
        url: https://127.0.0.1:6443
        ca: /etc/kubernetes/pki/ca.crt
        certificate: /var/lib/kubelet/pki/kubelet-client-current.pem
        name: "{{ inventory_hostname }}"
        unit: kubelet.service
"""

RETURN = r"""
healthy:
  description: Whether all checks passed.
  returned: always
  type: bool
  sample: true
results:
  description: What the last attempt of each check found.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the check.
      type: str
    ok:
      description: Whether it passed, or there was nothing to prove.
      type: bool
    state:
      description: V(passed), V(failed), or V(not applicable) where there was nothing to prove.
      type: str
    expected:
      description: What was expected.
      type: str
    seen:
      description: What was seen.
      type: str
failures:
  description: The checks that failed.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the check.
      type: str
    expected:
      description: What was expected.
      type: str
    seen:
      description: What was seen.
      type: str
    hint:
      description: What to do, if the definition says so.
      type: str
    unit:
      description: The unit whose journal this is.
      type: str
    journal:
      description: The last lines of the unit's journal.
      type: list
      elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.plainkube.cluster.plugins.module_utils.checks import (
    ARGUMENTS,
    Result,
    failure_text,
    journal_unit,
    pick,
    require_sound,
    wait_for,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.units import full_name
from ansible_collections.plainkube.cluster.plugins.module_utils.units_io import journal


def failure(name: str, definition: dict[str, Any], result: Result) -> dict[str, Any]:
    """Return all that is known about one failed check."""
    unit = journal_unit(definition)
    return {
        "name": name,
        "expected": result.expected,
        "seen": result.seen,
        "hint": definition.get("hint") or "",
        "unit": full_name(unit) if unit else "",
        "journal": journal(full_name(unit)) if unit else [],
    }


def message(failures: list[dict[str, Any]], texts: list[str], deadline: int) -> str:
    """Return the failures for people; the journal of a unit stands there once."""
    parts = [f"{len(failures)} of the checks did not pass within {deadline} s", *texts]
    journals = {failed["unit"]: failed["journal"] for failed in failures if failed["unit"]}
    for unit, lines in journals.items():
        parts.append(f"Last lines of the journal of {unit}:\n" + "\n".join(f"  {line}" for line in lines or ["(none)"]))
    return "\n".join(parts)


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    deadline = 0 if module.check_mode else module.params["deadline"]
    try:
        definitions = pick(module.params["definitions"] or {}, module.params["checks"])
        require_sound(definitions)
    except PlainkubeError as error:
        module.fail_json(msg=str(error))
    results = wait_for(definitions, deadline)
    failed = {name: result for name, result in results.items() if not result.ok}
    failures = [failure(name, definitions[name], result) for name, result in failed.items()]
    answer: dict[str, Any] = {
        "changed": False,
        "healthy": not failed,
        "failures": failures,
        "results": [
            {
                "name": name,
                "ok": result.ok,
                "state": result.state,
                "expected": result.expected,
                "seen": result.seen,
            }
            for name, result in results.items()
        ],
    }
    if failed and not module.check_mode:
        texts = [failure_text(name, definitions[name], result) for name, result in failed.items()]
        module.fail_json(msg=message(failures, texts, deadline), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
