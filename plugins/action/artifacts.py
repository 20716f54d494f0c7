# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's part of plainkube.cluster.artifacts: documentation stands in the module of the same name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.plainkube.cluster.plugins.module_utils.artifact_sources import supply
from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts import (
    ARGUMENT_SPEC,
    ArtifactsError,
    compare,
    diff_of,
    is_change,
    report,
    source_fault,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import (
    ARCHITECTURES,
    CATALOGUE,
    describe,
    fault_of,
    load,
    resolve,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.payload import pack
from ansible_collections.plainkube.cluster.plugins.plugin_utils.task_arguments import validated

display = Display()
CHECKSUMS_AT_ONCE = 8


class ArtifactFaults(PlainkubeError):
    """All that stands in the way, at once."""

    def __init__(self, faults: list[str]) -> None:
        """Take one text per fault."""
        super().__init__(
            faults[0] if len(faults) == 1 else f"{len(faults)} faults:\n" + "\n".join(f"- {text}" for text in faults)
        )
        self.faults = faults


class ActionModule(ActionBase):
    """Look at the host in one round trip; when something is missing, say where it comes from and let the host act."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Return what changed, or the faults."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._task_vars = task_vars or {}
        try:
            result.update(self._run(self._arguments()))
        except ArtifactFaults as error:
            result.update(failed=True, msg=f"artifacts: {error}", faults=error.faults)
        except PlainkubeError as error:
            result.update(failed=True, msg=f"artifacts: {error}", faults=[str(error)])
        return result

    def _arguments(self) -> dict[str, Any]:
        arguments = validated(self._task.args, ARGUMENT_SPEC)
        arguments["source"] = arguments["source"] or self._variable("plainkube_artifact_source") or "upstream"
        arguments["folder"] = arguments["folder"] or self._variable("plainkube_artifact_folder") or ""
        arguments["catalogue"] = arguments["catalogue"] or CATALOGUE
        return arguments

    def _variable(self, name: str) -> str | None:
        value = self._task_vars.get(name)
        return None if value is None else str(self._templar.template(value))

    def _run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        catalogue = load(arguments["catalogue"])
        pairs = [(item["name"], item["version"]) for item in arguments["items"]]
        self._refuse([*_faults_of_names(catalogue, pairs), source_fault(arguments["source"])])
        items = [describe(catalogue, name, version) for name, version in pairs]

        root = arguments["root"]
        found = self._on_host(arguments, {"half": "look", "items": items})
        arch = ARCHITECTURES.get(found["machine"], "")
        if not arch:
            raise ArtifactsError(
                f"the host's processor is {found['machine']}; there are artifacts for x86_64 and aarch64"
            )
        plans = [compare(root, item, state, arch) for item, state in zip(items, found["states"])]
        self._refuse([fault for plan in plans for fault in plan["faults"]])

        artifacts = [resolve(catalogue, name, version, arch) for name, version in pairs]
        if arguments["state"] == "available":
            self._see_available(arguments, items, self._supplies(arguments, plans, artifacts))
            return {"changed": False, "items": [], "architecture": arch}
        changed = any(is_change(plan) for plan in plans)
        if changed and not self._task.check_mode:
            self._act(arguments, items, self._supplies(arguments, plans, artifacts), artifacts)
        return {"changed": changed, "items": report(items, plans), "architecture": arch, "diff": diff_of(items, plans)}

    def _supplies(self, arguments: dict[str, Any], plans: list[Any], artifacts: list[Any]) -> list[dict[str, Any]]:
        """Return where each item that is to be installed comes from; nothing for the others."""

        def where(index: int) -> dict[str, Any] | str:
            if not plans[index]["install"]:
                return {}
            try:
                return supply(artifacts[index], arguments["source"], arguments["folder"])
            except PlainkubeError as error:
                return str(error)

        with ThreadPoolExecutor(CHECKSUMS_AT_ONCE) as pool:
            supplies = list(pool.map(where, range(len(artifacts))))
        self._refuse([text for text in supplies if isinstance(text, str)])
        return [supplied for supplied in supplies if isinstance(supplied, dict)]

    def _see_available(self, arguments: dict[str, Any], items: list[Any], supplies: list[dict[str, Any]]) -> None:
        """See that what the host itself would read or download is there; what is pushed lies on the controller."""
        orders = [{**item, **supplied} for item, supplied in zip(items, supplies) if {"path", "url"} & set(supplied)]
        if orders:
            self._refuse(self._on_host(arguments, {"half": "see", "items": orders})["faults"])

    def _act(
        self, arguments: dict[str, Any], items: list[Any], supplies: list[dict[str, Any]], artifacts: list[Any]
    ) -> None:
        """Send what is pushed, and let the host act."""
        orders = []
        for item, artifact, supplied in zip(items, artifacts, supplies):
            if "local" in supplied:
                supplied["pushed"] = self._push(artifact.title, supplied["local"], artifact.mirror_path)
            orders.append({**item, "members_in": artifact.members_in, **supplied})
        found = self._on_host(arguments, {"half": "act", "items": orders, "architecture": artifacts[0].arch})
        self._refuse(found["faults"])

    def _push(self, title: str, local: str, name: str) -> str:
        """Send a file to the host's temporary folder; the module removes it once it is installed."""
        shell = self._connection._shell
        if not shell.tmpdir:
            self._make_tmp_path()
        remote: str = shell.join_path(shell.tmpdir, name.replace("/", "-"))
        display.vv(f"artifacts: sending {title}", host=self._task_vars.get("inventory_hostname"))
        self._transfer_file(local, remote)
        self._fixup_perms2((shell.tmpdir, remote))
        return remote

    def _on_host(self, arguments: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
        """Run the module. Fails with its message when it does not answer as it should."""
        module_args = {"items": arguments["items"], "root": arguments["root"], "payload": pack(order)}
        answer: dict[str, Any] = self._execute_module(
            module_name="plainkube.cluster.artifacts", module_args=module_args, task_vars=self._task_vars
        )
        if answer.get("failed") or answer.get("unreachable"):
            raise AnsibleActionFail(answer.get("msg", "artifacts: the module failed on the host"), result=answer)
        return answer

    @staticmethod
    def _refuse(faults: list[Any]) -> None:
        """Stop when there are faults."""
        told = [fault for fault in faults if fault]
        if told:
            raise ArtifactFaults(told)


def _faults_of_names(catalogue: dict[str, Any], pairs: list[tuple[str, str]]) -> list[str | None]:
    """Return the faults of names and versions."""
    twice = sorted({name for name, _version in pairs if [other for other, _v in pairs].count(name) > 1})
    return [
        *[fault_of(catalogue, name, version) for name, version in pairs],
        *[f"{name} is listed more than once: its links can lead to one version only" for name in twice],
    ]
