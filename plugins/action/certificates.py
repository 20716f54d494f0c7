# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compares a host's certificates with what is asked and signs on the controller; the host keeps its keys to itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.plainkube.cluster.plugins.module_utils.certificates import (
    LEAF_ARGUMENTS,
    Attributes,
    CertificateError,
    Difference,
    Leaf,
    Present,
    describe_leaf,
    describe_present,
    differences,
    leaves,
    moment,
    signed_by_a_namesake,
    validity,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.payload import pack
from ansible_collections.plainkube.cluster.plugins.plugin_utils import x509
from ansible_collections.plainkube.cluster.plugins.plugin_utils.state_folder import StateFolder, authority_certificate
from ansible_collections.plainkube.cluster.plugins.plugin_utils.task_arguments import argument_or_variable, validated

ARGUMENTS = {
    "items": {"type": "list", "elements": "dict", "options": LEAF_ARGUMENTS, "required": True},
    "state_dir": {"type": "str"},
}


def present_from(answer: Mapping[str, Any], authority: x509.Authority | None) -> Present:
    """Return what the host said about one item, with its certificate understood."""
    certificates = x509.load_certificates(answer["certificate"].encode()) if answer["certificate"] else []
    issued = x509.read_issued(certificates[0]) if certificates else None
    by_authority = bool(
        authority
        and issued
        and x509.is_issued_by(certificates[0], authority.certificate)
        and certificates[1:] == authority.chain
    )
    return Present(
        issued=issued,
        by_authority=by_authority,
        certificate_file=_attributes(answer["certificate_file"]),
        key=answer["key"],
        key_file=_attributes(answer["key_file"]),
        interrupted=answer["interrupted"],
    )


def _attributes(answer: Mapping[str, Any] | None) -> Attributes | None:
    return Attributes(answer["mode"], tuple(answer["owners"]), tuple(answer["groups"])) if answer else None


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            result.update(self._hold(task_vars or {}))
        except PlainkubeError as error:
            raise AnsibleActionFail(str(error)) from error
        return result

    def _hold(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        arguments = validated(self._task.args, ARGUMENTS)
        wanted = leaves(arguments["items"])
        state_dir = argument_or_variable(
            arguments["state_dir"], "plainkube_state_dir", "state_dir", self._templar, task_vars
        )
        host = task_vars["inventory_hostname"]
        now = datetime.now(timezone.utc)
        authorities = self._authorities(StateFolder(state_dir), wanted)

        answers = self._on_host(
            [("look", {"certificate": leaf.certificate, "key": leaf.key}) for leaf in wanted], task_vars
        )
        present = [
            present_from(answer, authorities.get(leaf.authority)) for leaf, answer in zip(wanted, answers, strict=True)
        ]
        found = [differences(leaf, there, now) for leaf, there in zip(wanted, present, strict=True)]

        strangers = [
            f"{leaf.certificate} on {host}"
            for leaf, there, difference in zip(wanted, present, found, strict=True)
            if leaf.authority in authorities
            and signed_by_a_namesake(difference, there, authorities[leaf.authority].common_name)
        ]
        if strangers:
            raise CertificateError(
                f"{', '.join(strangers)}: signed by an authority that has the name of the one in {state_dir}/pki and "
                "another key. That folder was probably lost and made anew, or belongs to another controller. Signing "
                "again with the new authority would cut the hosts off from each other. Put the folder back from its "
                "backup and run this again; or, to begin anew without the cluster's data, run playbooks/reset.yml."
            )

        not_after = {}
        for leaf, there, difference in zip(wanted, present, found, strict=True):
            if difference.issue:
                authority = authorities.get(leaf.authority)
                end = authority.not_after if authority else now + leaf.lifetime
                not_after[leaf.name] = moment(validity(leaf, host, now, end)[1])
            elif there.issued:
                not_after[leaf.name] = moment(there.issued.not_after)

        if not self._task.check_mode:
            self._change(wanted, found, authorities, host, now, task_vars)

        answer: dict[str, Any] = {
            "changed": any(difference.reasons for difference in found),
            "certificates": [
                {
                    "name": leaf.name,
                    "changed": bool(difference.reasons),
                    "reasons": difference.reasons,
                    "not_after": not_after[leaf.name],
                }
                for leaf, difference in zip(wanted, found, strict=True)
            ],
        }
        if self._task.diff:
            answer["diff"] = [
                self._diff(leaf, there, difference, authorities.get(leaf.authority), not_after[leaf.name])
                for leaf, there, difference in zip(wanted, present, found, strict=True)
                if difference.reasons
            ]
        return answer

    def _authorities(self, folder: StateFolder, wanted: list[Leaf]) -> dict[str, x509.Authority]:
        """Return the authorities that sign these leaves; in check mode without those that are not made yet."""
        return {
            name: folder.authority(name)
            for name in sorted({leaf.authority for leaf in wanted})
            if folder.exists(authority_certificate(name)) or not self._task.check_mode
        }

    def _change(
        self,
        wanted: list[Leaf],
        found: list[Difference],
        authorities: dict[str, x509.Authority],
        host: str,
        now: datetime,
        task_vars: dict[str, Any],
    ) -> None:
        to_issue = [leaf for leaf, difference in zip(wanted, found, strict=True) if difference.issue]
        to_correct = [
            leaf
            for leaf, difference in zip(wanted, found, strict=True)
            if difference.attributes and not difference.issue
        ]
        if not to_issue and not to_correct:
            return
        answers = self._on_host(
            [("make_key", asdict(leaf, dict_factory=_plain)) for leaf in to_issue]
            + [("set_attributes", asdict(leaf, dict_factory=_plain)) for leaf in to_correct],
            task_vars,
        )
        if not to_issue:
            return
        work = []
        for leaf, answer in zip(to_issue, answers, strict=False):
            authority = authorities[leaf.authority]
            public_key = x509.load_public_key(
                answer["public_key"].encode(), f"what {host} sent for certificate {leaf.name}"
            )
            certificate = x509.issue_leaf(leaf, public_key, authority, host, now)
            item = asdict(leaf, dict_factory=_plain)
            item["pem"] = x509.certificate_pem([certificate, *authority.chain])
            item["public_digest"] = x509.public_digest(public_key)
            work.append(("install", item))
        self._on_host(work, task_vars)

    def _on_host(self, work: list[tuple[str, dict[str, Any]]], task_vars: dict[str, Any]) -> list[dict[str, Any]]:
        """Let the module do these steps in one round trip."""
        answer = self._execute_module(
            module_name="plainkube.cluster.certificates", module_args={"payload": pack(work)}, task_vars=task_vars
        )
        if answer.get("failed"):
            raise CertificateError(
                answer.get("module_stderr") or answer.get("msg") or "the module failed without a message"
            )
        results: list[dict[str, Any]] = answer["results"]
        return results

    @staticmethod
    def _diff(
        leaf: Leaf, present: Present, difference: Difference, authority: x509.Authority | None, not_after: str
    ) -> dict[str, str]:
        reasons = ", ".join(difference.reasons)
        if difference.issue:
            issuer = (
                authority.common_name if authority else f"{leaf.authority} (made on the controller at the first run)"
            )
        else:
            issuer = present.issued.issuer if present.issued else ""
        return {
            "before_header": leaf.certificate,
            "after_header": f"{leaf.certificate} ({reasons})",
            "before": "".join(f"{line}\n" for line in describe_present(present)),
            "after": "".join(f"{line}\n" for line in describe_leaf(leaf, issuer, not_after)),
        }


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Leave out what JSON cannot carry and the host has no use for."""
    return {name: value for name, value in pairs if name != "lifetime"}
