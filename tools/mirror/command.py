# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command line of tools/artifacts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import CATALOGUE, Artifact, load
from ansible_collections.plainkube.cluster.plugins.module_utils.download import hash_file
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.versions import kubernetes_versions

from mirror.fill import CACHE, HOST_ARCH, Mirror, alone, fill
from mirror.planning import select
from mirror.progress import size

EXAMPLES = """\
examples:
  tools/artifacts fill                                   what the newest Kubernetes needs
  tools/artifacts fill --kubernetes 1.36.4 --how go      what 1.36.4 needs, built from Go modules
  tools/artifacts fill --only etcd=3.6.14 --only runc    these alone
  tools/artifacts fill --all --arch amd64 --arch arm64   everything, to be carried into a closed network
  tools/artifacts list                                   the catalogue, and what the mirror has of it
  tools/artifacts verify                                 read the whole mirror and compare it with its checksums

The mirror is a plain folder <name>/<version>/<file> with <file>.sha256 beside each file, and <file>.built beside what
was built here. Serve it by any web server (plainkube_artifact_source: https://...), copy it to the hosts
(file:///...), or let the controller push from it (push)."""


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says. Returns the exit code: 0 done, 1 something could not be had, 2 wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        catalogue = load(options.catalogue)
        everything = options.all or (options.command != "fill" and not options.kubernetes and not options.only)
        versions = options.kubernetes or kubernetes_versions(catalogue)[:1]
        artifacts = select(catalogue, versions, options.only, options.arch or [HOST_ARCH], everything)
        return options.run(Mirror(options.mirror), artifacts, options)
    except PlainkubeError as error:
        print(f"tools/artifacts: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tools/artifacts: interrupted; started again it goes on with what is missing", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/artifacts",
        description=__import__("mirror").__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="fill|list|verify")
    for name, run, text in (
        ("fill", _fill, "bring what is missing into the mirror"),
        ("list", _list, "say what the catalogue has and what of it is in the mirror"),
        ("verify", _verify, "compare every file of the mirror with its checksum"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument(
            "--mirror", type=Path, default=CACHE / "mirror", metavar="FOLDER", help="default: %(default)s"
        )
        command.add_argument(
            "--arch", action="append", choices=["amd64", "arm64"], help="may be repeated; default: this machine's"
        )
        command.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="NAME[=VERSION]",
            help="these artifacts alone; may be repeated",
        )
        command.add_argument(
            "--kubernetes",
            action="append",
            default=[],
            metavar="VERSION",
            help="what this version needs; may be repeated",
        )
        command.add_argument("--all", action="store_true", help="every version in the catalogue")
        command.add_argument("--catalogue", default=CATALOGUE, metavar="FILE", help="default: the collection's own")
        if name == "fill":
            command.add_argument(
                "--how",
                choices=["download", "go", "auto"],
                default="auto",
                help="from the publishers, built from Go modules, or whichever is possible (default)",
            )
    return parser


def _fill(mirror: Mirror, artifacts: Sequence[Artifact], options: argparse.Namespace) -> int:
    with alone():
        faults = fill(mirror, artifacts, options.how)
    for fault in faults:
        print(f"tools/artifacts: {fault}", file=sys.stderr)
    if faults:
        return 1
    print(f"The mirror {mirror.folder} holds all {len(artifacts)} artifacts.")
    return 0


def _list(mirror: Mirror, artifacts: Sequence[Artifact], options: argparse.Namespace) -> int:
    for artifact in artifacts:
        if not mirror.checksum(artifact):
            state = "not in the mirror"
        else:
            built = mirror.built(artifact)
            state = f"{size(mirror.path(artifact).stat().st_size)}, " + (
                f"built from {built}" if built else "downloaded"
            )
        proof = "pinned" if artifact.sha256 else ("published" if artifact.published else "registry")
        print(f"{artifact.name:24} {artifact.version:8} {artifact.arch:6} {artifact.kind:8} {proof:10} {state}")
    return 0


def _verify(mirror: Mirror, artifacts: Sequence[Artifact], options: argparse.Namespace) -> int:
    present = [artifact for artifact in artifacts if mirror.checksum(artifact)]
    faults = []
    for artifact in present:
        wanted = mirror.checksum(artifact)
        if artifact.sha256 and not mirror.built(artifact):
            wanted = artifact.sha256
        found = hash_file(str(mirror.path(artifact)))
        if found != wanted:
            faults.append(
                f"{mirror.path(artifact)}: has SHA-256 {found}, wanted {wanted}: remove the file and run fill"
            )
    for fault in faults:
        print(f"tools/artifacts: {fault}", file=sys.stderr)
    print(f"{len(present) - len(faults)} of {len(present)} files in {mirror.folder} are intact.")
    return 1 if faults else 0
