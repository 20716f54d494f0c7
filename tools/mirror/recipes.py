# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How an artifact is built from its Go module, as text and arguments: nothing here runs anything.

A module whose go.mod has replace lines cannot be installed by its name. So an empty module requires it and repeats the
replaces, and starts with the module's own go.sum, which pins every dependency.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import Artifact


@dataclass
class Build:
    """One run of a compiler: all artifacts that share module, version, architecture and settings."""

    arch: str
    recipe: dict[str, Any]  # as in the catalogue, without packages
    module_version: str
    artifacts: list[Artifact] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What is built, as a progress line says it."""
        names = ", ".join(artifact.name for artifact in self.artifacts)
        versions = ", ".join(sorted({artifact.version for artifact in self.artifacts}))
        return f"{names} {versions} {self.arch}"

    @property
    def folder(self) -> str:
        """Name of the build's work folder."""
        return "-".join([self.artifacts[0].name, self.artifacts[0].version, self.arch])

    @property
    def packages(self) -> dict[str, str]:
        """Executable's name -> Go package, of all artifacts."""
        return {
            name: package for artifact in self.artifacts for name, package in artifact.build.get("packages", {}).items()
        }

    @property
    def modules(self) -> list[str]:
        """The modules that are required, the one that gives replaces and go.sum first."""
        return [self.recipe["module"], *self.recipe.get("also", [])]


def group_builds(artifacts: Iterable[Artifact]) -> list[Build]:
    """Return as few builds as possible, in the order of their first artifact."""
    builds: dict[str, Build] = {}
    for artifact in artifacts:
        recipe = {key: value for key, value in artifact.build.items() if key != "packages"}
        version = recipe.get("module_version", f"v{artifact.version}")
        key = json.dumps([artifact.arch, version, recipe], sort_keys=True)
        builds.setdefault(key, Build(artifact.arch, recipe, version)).artifacts.append(artifact)
    return list(builds.values())


def _directives(go_mod: str, verb: str) -> list[str]:
    """Return the arguments of each `verb ...` line, those inside a `verb ( ... )` block too, without comments."""
    found, inside = [], False
    for raw in go_mod.splitlines():
        line = raw.split("//")[0].strip()
        if inside:
            if line == ")":
                inside = False
            elif line:
                found.append(line)
        elif re.match(rf"{verb}\s*\($", line):
            inside = True
        elif line.startswith(verb + " "):
            found.append(line[len(verb) :].strip())
    return found


def wrapper_go_mod(
    go_mod: str,
    modules: list[str],
    version: str,
    replace_folders_by: str = "",
    replace: Mapping[str, str] | None = None,
    stubs: Iterable[str] = (),
) -> str:
    """Return the go.mod of an empty module that requires modules at version as their own repository would.

    go_mod is the text of the first module's go.mod. A replacement by a folder of that repository becomes one by the
    version replace_folders_by, or is left out when that is empty, because the required versions are published. A module
    of stubs, which is published nowhere, becomes its folder.
    replace: {module: version} of dependencies whose wanted version cannot be had.
    """
    replace = replace or {}
    lines = ["module plainkube.invalid/build", "", f"go {_directives(go_mod, 'go')[0]}", ""]
    lines += [f"require {module} {version}" for module in modules]
    lines += [f"replace {module} => {module} {chosen}" for module, chosen in replace.items()]
    replaced = set(replace)
    for directive in _directives(go_mod, "replace"):
        old, new = (side.split() for side in directive.split("=>"))
        if old[0] in replace:
            continue
        if old[0] in stubs:
            lines.append(f"replace {old[0]} => ./{stub_folder(old[0])}")
        elif not new[0].startswith("."):
            lines.append(f"replace {' '.join(old)} => {' '.join(new)}")
        elif replace_folders_by:
            lines.append(f"replace {old[0]} => {old[0]} {replace_folders_by}")
        replaced.add(old[0])
    if replace_folders_by:
        unpublished = {line.split()[0] for line in _directives(go_mod, "require") if line.split()[1] == "v0.0.0"}
        lines += [f"replace {module} => {module} {replace_folders_by}" for module in sorted(unpublished - replaced)]
    lines += [f"exclude {directive}" for directive in _directives(go_mod, "exclude")]
    return "\n".join(lines) + "\n"


def stub_folder(module: str) -> str:
    """Return the folder, inside that of the build, of a module whose source is in the recipe."""
    return f"stubs/{module}"


def merged_go_sum(texts: Iterable[str]) -> str:
    """Return the lines of several go.sum files, each once."""
    return "".join(f"{line}\n" for line in sorted({line for text in texts for line in text.splitlines() if line}))


def joined_yaml(documents: Iterable[bytes]) -> bytes:
    """Return YAML files as one file of many documents."""
    return b"".join(b"---\n" + document.rstrip() + b"\n" for document in documents)


def go_arguments(recipe: dict[str, Any]) -> list[str]:
    """Return the flags that `go build` and `go list` share."""
    arguments = ["-mod=mod", "-trimpath", "-buildvcs=false"]
    if recipe.get("tags"):
        arguments.append("-tags=" + ",".join(recipe["tags"]))
    return arguments


def linker_flags(recipe: dict[str, Any]) -> str:
    """Return the value of -ldflags: no symbol tables, the version's variables, the recipe's own flags."""
    variables = [f"-X {name}={value}" for name, value in recipe.get("variables", {}).items()]
    return " ".join(["-s", "-w", *variables, *recipe.get("linker", [])])


def go_environment(build: Build, host_arch: str) -> dict[str, str]:
    """Return the environment variables that decide what comes out of the compiler."""
    environment = {
        "CGO_ENABLED": "1" if build.recipe.get("cgo") else "0",
        "GOOS": "linux",
        "GOARCH": build.arch,
        "GOWORK": "off",
    }
    if build.recipe.get("cgo") and build.arch != host_arch:
        environment["CC"] = compiler(build.arch, host_arch)
        environment["PKG_CONFIG_LIBDIR"] = f"/usr/lib/{_TRIPLETS[build.arch]}/pkgconfig"
    return environment


_TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}


def compiler(arch: str, host_arch: str) -> str:
    """Return the C compiler's name for an architecture."""
    return "gcc" if arch == host_arch else f"{_TRIPLETS[arch]}-gcc"


def c_command(build: Build, source: str, output: str, host_arch: str) -> list[str]:
    """Return the command that compiles one C file into a static executable."""
    defines = [f"-D{name}={value}" for name, value in build.recipe.get("defines", {}).items()]
    return [compiler(build.arch, host_arch), "-Os", "-Wall", "-Werror", "-static", "-s", *defines, "-o", output, source]


def debian_package(need: str, arch: str, host_arch: str) -> str:
    """Return the Debian package that brings what a recipe needs."""
    if arch == host_arch:
        return {"libseccomp": "libseccomp-dev"}.get(need, need)
    return {
        "gcc": f"gcc-{_TRIPLETS[arch].replace('_', '-')} libc6-dev-{arch}-cross",
        "libseccomp": f"libseccomp-dev:{arch}",
    }.get(need, need)
