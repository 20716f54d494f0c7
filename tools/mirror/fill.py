# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Downloading and building what a mirror misses: all that touches the disk, the network or a compiler."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ansible_collections.plainkube.cluster.plugins.module_utils.catalogue import ARCHITECTURES, Artifact
from ansible_collections.plainkube.cluster.plugins.module_utils.download import (
    DownloadError,
    checksum_in,
    fetch_text,
    hash_file,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.download import download as download_file
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError

from mirror import oci, recipes
from mirror.progress import Progress, size
from mirror.recipes import Build

HOST_ARCH = ARCHITECTURES.get(platform.machine(), platform.machine())
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plainkube"
DOWNLOADS = 4  # at once; more do not make one line to the world faster
PROBE_SECONDS = 5
HEARTBEAT_SECONDS = 30
GO_WANTED = (1, 26)


class FillError(PlainkubeError):
    """An artifact could not be had."""


@dataclass(frozen=True)
class Mirror:
    """A folder with <name>/<version>/<file>, <file>.sha256 beside each, and <file>.built beside what was built."""

    folder: Path

    def path(self, artifact: Artifact) -> Path:
        """Where an artifact's file stands."""
        return self.folder / artifact.mirror_path

    def checksum(self, artifact: Artifact) -> str:
        """Return the noted SHA-256 of a finished artifact, empty when it is not there. The note is written last."""
        path = self.path(artifact)
        with contextlib.suppress(OSError):
            noted = checksum_in(_beside(path, ".sha256").read_text(), path.name)
            if noted and path.is_file():
                return noted
        return ""

    def built(self, artifact: Artifact) -> str:
        """Return from what an artifact was built, empty when it was downloaded."""
        with contextlib.suppress(OSError):
            return _beside(self.path(artifact), ".built").read_text().strip()
        return ""

    def publish(self, artifact: Artifact, write: Callable[[BinaryIO], None], built: str = "", mode: int = 0o644) -> int:
        """Let write fill the artifact's file, then show it with its notes. Returns its size."""
        path = self.path(artifact)
        path.parent.mkdir(parents=True, exist_ok=True)
        _beside(path, ".sha256").unlink(missing_ok=True)
        with _replacing(path, mode) as stream:
            write(stream)
        note = _beside(path, ".built")
        if built:
            note.write_text(f"{built}\n")
        else:
            note.unlink(missing_ok=True)
        with _replacing(_beside(path, ".sha256"), 0o644) as stream:
            stream.write(f"{hash_file(str(path))}  {path.name}\n".encode())
        return path.stat().st_size


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextlib.contextmanager
def _replacing(path: Path, mode: int) -> Iterator[BinaryIO]:
    """Give a file to write that takes the name path only when it is complete."""
    temporary = _beside(path, ".part")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


# Downloads


def unreachable_hosts(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Ask each publisher's host for one small file; return those that do not serve it, with the reason."""
    samples: dict[str, str] = {}
    for artifact in artifacts:
        url = artifact.published or f"https://{artifact.reference.split('/')[0]}/v2/"
        samples.setdefault(_host(url), url)

    def probe(url: str) -> str:
        try:
            fetch_text(url, PROBE_SECONDS)
        except DownloadError as error:
            return "" if error.status == 401 else str(error)  # a registry that asks for a token is there
        return ""

    with ThreadPoolExecutor(max(1, len(samples))) as pool:
        return {host: reason for host, reason in zip(samples, pool.map(probe, samples.values())) if reason}


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def source_host(artifact: Artifact) -> str:
    """Return the host that a download of the artifact needs."""
    return _host(artifact.published) or artifact.reference.split("/")[0]


def download(artifact: Artifact, mirror: Mirror) -> str:
    """Bring one artifact into the mirror from its publisher. Returns what to say. Raises FillError."""
    if artifact.kind == "image":
        return _download_image(artifact, mirror)
    partial = CACHE / "downloads" / f"{artifact.name}-{artifact.version}-{artifact.arch}"
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        wanted = artifact.sha256 or checksum_in(fetch_text(artifact.published), artifact.file)
        if not wanted:
            raise FillError(f"{artifact.title}: {artifact.published} holds no SHA-256 for {artifact.file}")
        download_file(artifact.url, str(partial))
    except DownloadError as error:
        raise FillError(f"{artifact.title}: {error}") from error
    found = hash_file(str(partial))
    if found != wanted:
        partial.unlink()
        raise FillError(
            f"{artifact.title}: {artifact.url} has SHA-256 {found}, wanted {wanted}. "
            "The download was thrown away; do not use this file"
        )

    def copy(stream: BinaryIO) -> None:
        with partial.open("rb") as source:
            shutil.copyfileobj(source, stream, 1 << 20)

    length = mirror.publish(artifact, copy)
    partial.unlink()
    return f"downloaded, {size(length)}, SHA-256 as {'pinned' if artifact.sha256 else 'published'}"


def _download_image(artifact: Artifact, mirror: Mirror) -> str:
    path = mirror.path(artifact)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".pulled")
    temporary.unlink(missing_ok=True)
    command = ["skopeo", "copy", "--quiet", "--override-os", "linux", "--override-arch", artifact.arch]
    command += [f"docker://{artifact.reference}", f"oci-archive:{temporary}:{artifact.reference}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise FillError(
                f"{artifact.title}: skopeo cannot copy {artifact.reference}: {result.stderr.strip()[-400:]}"
            )

        def copy(stream: BinaryIO) -> None:
            with temporary.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)

        return f"pulled {artifact.reference}, {size(mirror.publish(artifact, copy))}"
    finally:
        temporary.unlink(missing_ok=True)


# Builds


def missing_tools(builds: Sequence[Build], images: Sequence[Artifact] = ()) -> list[str]:
    """Return one message per program or library that is missing for these builds, and for pulling these images."""
    faults = []
    if builds:
        faults += _go_faults()
    packages = set()
    for build in builds:
        for need in build.recipe.get("needs", []):
            if not _has(need, build.arch):
                packages.add(recipes.debian_package(need, build.arch, HOST_ARCH))
    if packages:
        needy = ", ".join(build.title for build in builds if build.recipe.get("needs"))
        faults.append(f"to build {needy}: apt-get install {' '.join(sorted(packages))}")
    if images and not shutil.which("skopeo"):
        references = ", ".join(image.reference for image in images)
        faults.append(f"to pull {references}: apt-get install skopeo, or build them with --how go")
    return faults


def _go_faults() -> list[str]:
    wanted = ".".join(map(str, GO_WANTED))
    if not shutil.which("go"):
        return [f"Go {wanted} or newer is not installed: get it from https://go.dev/dl/ and put its bin folder on PATH"]
    found = subprocess.run(
        ["go", "env", "GOVERSION", "GOTOOLCHAIN"], capture_output=True, text=True, check=False
    ).stdout.split()
    match = re.match(r"go(\d+)\.(\d+)", found[0] if found else "")
    if (
        match
        and (int(match[1]), int(match[2])) < GO_WANTED
        and (found[1:] == ["local"] or (int(match[1]), int(match[2])) < (1, 21))
    ):
        return [
            f"Go {wanted} or newer is wanted, found {found[0]}: "
            "get it from https://go.dev/dl/ and put its bin folder first on PATH"
        ]
    return []


def _has(need: str, arch: str) -> bool:
    if need == "gcc":
        return shutil.which(recipes.compiler(arch, HOST_ARCH)) is not None
    if need == "libseccomp":
        build = Build(arch, {"cgo": True}, "")
        environment = {**os.environ, **recipes.go_environment(build, HOST_ARCH)}
        return (
            shutil.which("pkg-config") is not None
            and not subprocess.run(["pkg-config", "--exists", need], env=environment, check=False).returncode
        )
    return shutil.which(need) is not None


class Builder:
    """Builds one after another, since the compiler uses all cores, while the modules of the next are being fetched."""

    def __init__(self, mirror: Mirror, progress: Progress) -> None:
        """Remember where results go and who is told."""
        self.mirror = mirror
        self.progress = progress

    def run(self, builds: Sequence[Build]) -> list[str]:
        """Make all builds; a failed one does not stop the others. Returns the faults."""
        faults = []
        fetcher = ThreadPoolExecutor(1)
        try:
            prepared: list[Future[Path]] = [fetcher.submit(self._prepare, build) for build in builds]
            for build, future in zip(builds, prepared):
                started = time.monotonic()
                self.progress.say(f"{build.title}: building")
                try:
                    self._compile(build, future.result())
                    lengths = [self._publish(build, artifact) for artifact in build.artifacts]
                except FillError as error:
                    faults.append(f"{build.title}: {error}")
                    self.progress.say(f"{build.title}: FAILED")
                else:
                    self.progress.say(
                        f"{build.title}: built in {time.monotonic() - started:.0f} s, {size(sum(lengths))}",
                        len(lengths),
                    )
                    shutil.rmtree(self._folder(build), ignore_errors=True)
        finally:
            fetcher.shutdown(cancel_futures=True)
        return faults

    def _folder(self, build: Build) -> Path:
        return CACHE / "build" / build.folder

    def _go(self, build: Build, arguments: Sequence[str], on_line: Callable[[str], None] = lambda line: None) -> str:
        """Run go in the build's folder and return what it printed. Raises FillError with the end of its output."""
        environment = {**os.environ, **recipes.go_environment(build, HOST_ARCH)}
        with (
            tempfile.TemporaryFile("w+") as output,
            subprocess.Popen(
                ["go", *arguments],
                cwd=self._folder(build),
                env=environment,
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            tail: list[str] = []
            assert process.stderr
            for line in process.stderr:
                on_line(line.strip())
                tail = [*tail, line.rstrip()][-12:]
            process.wait()
            output.seek(0)
            text = output.read()
        if process.returncode:
            raise FillError(
                "go " + " ".join(arguments[:2]) + " failed:\n    " + "\n    ".join(tail or text.splitlines()[-12:])
            )
        return text

    def _module_folder(self, build: Build, module: str) -> Path:
        answer = json.loads(self._go(build, ["mod", "download", "-json", f"{module}@{build.module_version}"]))
        return Path(answer["Dir"])

    def _prepare(self, build: Build) -> Path:
        """Write the wrapper module and fetch all that the packages need. Returns the main module's source folder."""
        folder = self._folder(build)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        sources = [self._module_folder(build, module) for module in build.modules]
        if not build.packages:
            return sources[0]
        go_mod = (sources[0] / "go.mod").read_text()
        stubs: dict[str, dict[str, str]] = build.recipe.get("stubs", {})
        wrapper = recipes.wrapper_go_mod(
            go_mod,
            build.modules,
            build.module_version,
            build.recipe.get("replace_folders_by", ""),
            build.recipe.get("replace"),
            stubs,
        )
        for module, files in stubs.items():
            stub = folder / recipes.stub_folder(module)
            stub.mkdir(parents=True)
            (stub / "go.mod").write_text(f"module {module}\n")
            for name, text in files.items():
                (stub / name).write_text(text)
        (folder / "go.mod").write_text(wrapper)
        (folder / "go.sum").write_text(recipes.merged_go_sum((source / "go.sum").read_text() for source in sources))
        self._go(
            build,
            ["list", "-deps", "-f", "{{.ImportPath}}", *recipes.go_arguments(build.recipe), *build.packages.values()],
        )
        return sources[0]

    def _compile(self, build: Build, source: Path) -> None:
        out = self._folder(build) / "out"
        out.mkdir()
        if "join" in build.recipe:
            joined = recipes.joined_yaml(path.read_bytes() for path in sorted(source.glob(build.recipe["join"])))
            (out / build.artifacts[0].name).write_bytes(joined)
            return
        if "c" in build.recipe:
            command = recipes.c_command(
                build, str(source / build.recipe["c"]), str(out / build.artifacts[0].name), HOST_ARCH
            )
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise FillError(f"{' '.join(command)} failed: {result.stderr.strip()[-800:]}")
            return
        shared = [*recipes.go_arguments(build.recipe), f"-ldflags={recipes.linker_flags(build.recipe)}"]
        with self._heartbeat(build) as count:
            # go names the executables after their packages; those that shall be named otherwise are renamed below.
            self._go(build, ["build", "-v", *shared, "-o", f"{out}/", *build.packages.values()], count)
        for name, package in build.packages.items():
            default = _default_name(package)
            if default != name:
                (out / default).rename(out / name)

    @contextlib.contextmanager
    def _heartbeat(self, build: Build) -> Iterator[Callable[[str], None]]:
        """Say now and then how many packages a long build has compiled."""
        compiled = [0]
        stop = threading.Event()
        started = time.monotonic()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                self.progress.say(
                    f"{build.title}: {compiled[0]} packages compiled in {time.monotonic() - started:.0f} s"
                )

        def count(_line: str) -> None:
            compiled[0] += 1

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield count
        finally:
            stop.set()
            thread.join()

    def _publish(self, build: Build, artifact: Artifact) -> int:
        out = self._folder(build) / "out"
        built = f"{build.recipe['module']} {build.module_version}"

        def write(stream: BinaryIO) -> None:
            if artifact.kind == "file":
                stream.write((out / artifact.name).read_bytes())
            elif artifact.kind == "image":
                oci.write_image(stream, artifact.image, artifact.arch, (out / artifact.name).read_bytes())
            else:
                oci.write_tar_gz(stream, self._archive_entries(build, artifact, out))

        return self.mirror.publish(artifact, write, built, 0o755 if artifact.kind == "file" else 0o644)

    def _archive_entries(self, build: Build, artifact: Artifact, out: Path) -> Iterator[oci.Entry]:
        for name in artifact.build["packages"]:
            yield artifact.members_in + name, (out / name).read_bytes(), 0o755
        for folder in build.recipe.get("folders", []):
            source = self._module_folder(build, build.recipe["module"])
            for path in sorted((source / folder).rglob("*")):
                name = artifact.members_in + path.relative_to(source).as_posix()
                yield (name, None, 0o755) if path.is_dir() else (name, path.read_bytes(), 0o644)


def _default_name(package: str) -> str:
    """Return how go names the executable of a package: its last element that is no major version."""
    last = package.split("/")
    return last[-2] if re.fullmatch(r"v[2-9]\d*", last[-1]) else last[-1]


# The whole


def fill(mirror: Mirror, artifacts: Sequence[Artifact], how: str) -> list[str]:
    """Bring what is missing into the mirror; how is download, go or auto. Returns the faults, all at once."""
    progress = Progress(len(artifacts))
    missing = [artifact for artifact in artifacts if not mirror.checksum(artifact)]
    if len(missing) < len(artifacts):
        progress.say(f"{len(artifacts) - len(missing)} already in {mirror.folder}", len(artifacts) - len(missing))
    if not missing:
        return []
    to_download, to_build = _divide(missing, how, progress)
    builds = recipes.group_builds(to_build)
    faults = missing_tools(builds, [artifact for artifact in to_download if artifact.kind == "image"])
    if faults:
        return faults

    def fetch(artifact: Artifact) -> str:
        try:
            told = download(artifact, mirror)
        except FillError as error:
            progress.say(f"{artifact.title} {artifact.arch}: FAILED")
            return str(error)
        progress.say(f"{artifact.title} {artifact.arch}: {told}", 1)
        return ""

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        downloads = [pool.submit(fetch, artifact) for artifact in to_download]
        faults = Builder(mirror, progress).run(builds)
        return [fault for fault in (future.result() for future in downloads) if fault] + faults


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other fill uses the work folders."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "fill.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another tools/artifacts fill is running: waiting for it", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _divide(missing: Sequence[Artifact], how: str, progress: Progress) -> tuple[list[Artifact], list[Artifact]]:
    """Return what is downloaded and what is built."""
    if how == "download":
        return list(missing), []
    if how == "go":
        return [], list(missing)
    silent = unreachable_hosts(missing)
    for host, reason in silent.items():
        progress.say(f"{host} does not answer, so what it serves is built from Go modules instead ({reason})")
    to_build = [a for a in missing if source_host(a) in silent or (a.kind == "image" and not shutil.which("skopeo"))]
    return [artifact for artifact in missing if artifact not in to_build], to_build
