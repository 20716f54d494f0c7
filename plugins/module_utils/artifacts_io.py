# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looking at the artifacts of a host, and installing them so that nothing half-written is ever visible."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.plainkube.cluster.plugins.module_utils.artifacts import (
    MANIFEST,
    STAGING_SUFFIX,
    ArtifactsError,
    compare,
    title,
    version_folder,
    wanted_links,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.download import (
    CHUNK,
    DownloadError,
    checksum_in,
    copy_file,
    download,
    hash_file,
    probe,
)
from ansible_collections.plainkube.cluster.plugins.module_utils.errors import PlainkubeError
from ansible_collections.plainkube.cluster.plugins.module_utils.files_io import sync_folder, write_atomically

AT_ONCE = 4
LOCK_SECONDS = 300
IMPORT_SECONDS = 300
# What containerd's CRI plugin tells the kubelet about such an image: leave it.
PINNED = "io.cri-containerd.pinned=pinned"
EXECUTABLE, PLAIN, FOLDER = 0o755, 0o644, 0o755


# Look


def look(root: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each item's manifest, damaged files, links, leftovers, whether its image is loaded. Writes nothing."""
    loaded = loaded_images() if any(item["reference"] for item in items) else None
    return [_look_at(root, item, loaded) for item in items]


def _look_at(root: str, item: dict[str, Any], loaded: set[str] | None) -> dict[str, Any]:
    folder = version_folder(root, item)
    manifest = _read_manifest(folder)
    damaged = {}
    for name, noted in (manifest or {"files": {}})["files"].items():
        fault = _fault_of_file(posixpath.join(folder, name), noted)
        if fault:
            damaged[name] = fault
    return {
        "manifest": manifest,
        "damaged": damaged,
        "links": {path: _target(path) for path in wanted_links(root, item)},
        "image": None if loaded is None else item["reference"] in loaded,
        "leftovers": _leftovers(root, item["name"]),
    }


def _read_manifest(folder: str) -> dict[str, Any] | None:
    """Return what was noted when the version was installed; None when it was not, or not to the end."""
    try:
        with open(posixpath.join(folder, MANIFEST), encoding="utf-8") as stream:
            manifest = json.load(stream)
        return manifest if isinstance(manifest["files"], dict) and isinstance(manifest["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fault_of_file(path: str, noted: dict[str, Any]) -> str | None:
    try:
        found = os.lstat(path)
    except OSError:
        return "missing"
    if not stat.S_ISREG(found.st_mode) or found.st_size != noted["size"]:
        return "altered"
    if stat.S_IMODE(found.st_mode) != noted["mode"]:
        return f"has mode {stat.S_IMODE(found.st_mode):04o}, wanted {noted['mode']:04o}"
    # Reading hundreds of megabytes on each run would cost more than all else: only when the file was touched.
    if found.st_mtime_ns != noted["mtime_ns"] and hash_file(path) != noted["sha256"]:
        return "altered"
    return None


def _target(path: str) -> str | None:
    """Return where a link leads, None when nothing is there, and "" for what is no link."""
    try:
        return str(Path(path).readlink())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except OSError:
        return ""


def _leftovers(root: str, name: str) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(str(path) for path in Path(root, name).iterdir() if path.name.endswith(STAGING_SUFFIX))
    return []


def loaded_images() -> set[str] | None:
    """Return the references that containerd has for Kubernetes, None when it does not answer."""
    try:
        answer = _ctr(["images", "ls", "-q"], 30)
    except ArtifactsError:
        return None
    return set(answer.split())


def _ctr(arguments: list[str], timeout: float) -> str:
    program = shutil.which("ctr", path="/usr/local/bin:" + os.environ.get("PATH", "/usr/bin:/bin"))
    if not program:
        raise ArtifactsError("containerd's ctr is not installed")
    try:
        result = subprocess.run(
            [program, "-n", "k8s.io", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ArtifactsError(f"ctr {arguments[0]} {arguments[1]}: {error}") from error
    if result.returncode:
        raise ArtifactsError((result.stderr.strip().splitlines() or [f"ctr ended with {result.returncode}"])[-1])
    return result.stdout


# Act


def act(root: str, items: list[dict[str, Any]], arch: str) -> list[str]:
    """Install what is missing, several at once; then, when all is there, set the links and load the images.

    An item that is to be installed has sha256 and one of url, path (a file of this host; without sha256 the sum beside
    it counts) or pushed (a temporary copy that is removed). Returns all faults. Raises ArtifactsError and OSError.
    """
    Path(root).mkdir(mode=FOLDER, parents=True, exist_ok=True)
    with _lock(posixpath.join(root, ".lock")):
        # Another run, whose controller died, may have gone on until now: look again.
        plans = [compare(root, item, state, arch) for item, state in zip(items, look(root, items))]
        faults = [fault for plan in plans for fault in plan["faults"]]
        if faults:
            return faults
        for item in items:
            for leftover in _leftovers(root, item["name"]):
                shutil.rmtree(leftover)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(
                lambda pair: _try_install(root, pair[0]) if pair[1]["install"] else None, zip(items, plans)
            )
            faults = [fault for fault in found if fault]
        if faults:
            return faults
        for plan in plans:
            for path, target in plan["links"].items():
                _set_link(path, target)
        return [fault for item, plan in zip(items, plans) if plan["load"] for fault in _load(root, item)]


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """Wait until no other run installs on this host."""
    with open(path, "w", encoding="utf-8") as stream:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ArtifactsError(
                        f"{path} has been held by another run for {LOCK_SECONDS} s: "
                        f"see what it does (fuser {path}), end it, and run again"
                    ) from None
                time.sleep(0.2)
        yield


def _try_install(root: str, item: dict[str, Any]) -> str | None:
    """Install one item. Returns its fault."""
    staging = version_folder(root, item) + STAGING_SUFFIX
    try:
        Path(staging).mkdir(mode=FOLDER, parents=True)
        _install(root, item, staging)
    except PlainkubeError as error:
        return f"{title(item)}: {error}"
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(root).free
            return (
                f"{title(item)}: no space left on the disk of {root} ({free // 1_000_000} MB free): "
                "make room, for example remove old versions there, and run again"
            )
        return f"{title(item)}: cannot be written below {root}: {error}"
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return None


def _install(root: str, item: dict[str, Any], staging: str) -> None:
    fetched, wanted = _fetch(item, posixpath.join(staging, ".download"))
    found = hash_file(fetched)
    if found != wanted:
        raise ArtifactsError(
            f"{_origin(item)} has SHA-256 {found}, wanted {wanted} ({item.get('proof') or 'noted beside it'}). "
            "Nothing of it was installed: fetch the file again, or find out who changed it"
        )
    if item["kind"] == "archive":
        hashes = _extract(item, fetched, staging)
    else:
        name = item["members"][0]
        copy_file(fetched, posixpath.join(staging, name))
        hashes = {name: found}
    if fetched == item.get("pushed") or fetched.startswith(staging):
        Path(fetched).unlink()
    files = {name: _finish(item, posixpath.join(staging, name), sha256) for name, sha256 in sorted(hashes.items())}
    manifest = {
        "name": item["name"],
        "version": item["version"],
        "source": _origin(item),
        "sha256": found,
        "built": bool(item.get("built")),
        "files": files,
    }
    _show(staging, version_folder(root, item), files, manifest)


def _origin(item: dict[str, Any]) -> str:
    """Return where an item comes from, as a message and the manifest say it."""
    return str(item.get("origin") or item.get("url") or item.get("path"))


def _fetch(item: dict[str, Any], temporary: str) -> tuple[str, str]:
    """Return the path of the item's file on this host, and the SHA-256 that it must have."""
    if item.get("pushed"):
        return item["pushed"], item["sha256"]
    if item.get("path"):
        return item["path"], _local_checksum(item)
    if not item.get("url"):
        raise ArtifactsError("was complete a moment ago and is not any more: run again")
    try:
        download(item["url"], temporary)
    except DownloadError as error:
        raise ArtifactsError(f"{error}. {item['advice']}") from error
    return temporary, item["sha256"]


def _local_checksum(item: dict[str, Any]) -> str:
    """Return the sum for a file of a mirror folder on this host: the pinned one, or the one beside what was built."""
    path = Path(item["path"])
    if not path.is_file():
        raise ArtifactsError(f"{path} does not exist on this host. {item['advice']}")
    built = Path(f"{path}.built").is_file()
    item["built"] = built
    if item["sha256"] and not built:
        return str(item["sha256"])
    note = Path(f"{path}.sha256")
    try:
        noted = checksum_in(note.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise ArtifactsError(f"{note}: {error.strerror}. {item['advice']}") from error
    if not noted:
        raise ArtifactsError(f"{note} holds no SHA-256 for {path.name}. {item['advice']}")
    return noted


def unavailable(items: list[dict[str, Any]]) -> list[str]:
    """Return the faults of items that this host reads or downloads itself, without installing anything."""

    def fault(item: dict[str, Any]) -> str | None:
        try:
            if item.get("url"):
                probe(item["url"])
            else:
                _local_checksum(item)
        except DownloadError as error:
            return f"{item['name']} {item['version']}: {error}. {item['advice']}"
        except ArtifactsError as error:
            return f"{item['name']} {item['version']}: {error}"
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [text for text in pool.map(fault, items) if text]


def _extract(item: dict[str, Any], archive_path: str, staging: str) -> dict[str, str]:
    """Write the item's members below staging. Returns their SHA-256 by name."""
    hashes: dict[str, str] = {}
    single = {posixpath.normpath(item["members_in"] + name): name for name in item["members"] if not name.endswith("/")}
    folders = [posixpath.normpath(item["members_in"] + name) + "/" for name in item["members"] if name.endswith("/")]
    prefix = len(posixpath.normpath(item["members_in"])) + 1 if posixpath.normpath(item["members_in"]) != "." else 0
    try:
        with tarfile.open(archive_path, "r:*") as archive:
            for entry in archive:
                # A normal path cannot lead out of the folder it begins with, and only wanted folders are taken.
                path = posixpath.normpath(entry.name)
                if not entry.isreg():
                    continue
                if path in single:
                    name = single[path]
                elif any(path.startswith(folder) for folder in folders):
                    name = path[prefix:]
                else:
                    continue
                source = archive.extractfile(entry)
                assert source is not None
                target = Path(staging, name)
                target.parent.mkdir(mode=FOLDER, parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with target.open("wb") as stream:
                    for chunk in iter(lambda: source.read(CHUNK), b""):  # noqa: B023
                        stream.write(chunk)
                        digest.update(chunk)
                hashes[name] = digest.hexdigest()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArtifactsError(f"{_origin(item)} is no whole tar archive: {error}") from error
    lacking = [name for name in single.values() if name not in hashes]
    lacking += [
        name for name in item["members"] if name.endswith("/") and not any(found.startswith(name) for found in hashes)
    ]
    if lacking:
        raise ArtifactsError(f"{_origin(item)} does not hold {', '.join(sorted(lacking))}")
    return hashes


def _finish(item: dict[str, Any], path: str, sha256: str) -> dict[str, Any]:
    """Give a file its mode, make it survive a power cut, and return what the manifest notes of it."""
    mode = (
        EXECUTABLE
        if item["kind"] != "image" and Path(path).name in {Path(name).name for name in item["members"]}
        else PLAIN
    )
    with open(path, "rb") as stream:
        os.fchmod(stream.fileno(), mode)
        os.fsync(stream.fileno())
        found = os.fstat(stream.fileno())
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "mode": mode, "sha256": sha256}


def _show(staging: str, folder: str, files: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Make a finished version visible: by one rename, or file by file where a damaged one is in use."""
    text = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    if not os.path.lexists(folder):
        write_atomically(posixpath.join(staging, MANIFEST), text, PLAIN)
        for path in Path(staging).rglob("*"):
            if path.is_dir():
                sync_folder(str(path))
        sync_folder(staging)
        Path(staging).rename(folder)
        sync_folder(str(Path(folder).parent))
        return
    note = Path(folder, MANIFEST)
    with contextlib.suppress(FileNotFoundError):
        note.unlink()
    for name in files:
        target = Path(folder, name)
        target.parent.mkdir(mode=FOLDER, parents=True, exist_ok=True)
        Path(staging, name).replace(target)
        sync_folder(str(target.parent))
    write_atomically(str(note), text, PLAIN)


def _set_link(path: str, target: str) -> None:
    """Point a link somewhere else in one step."""
    temporary = path + STAGING_SUFFIX
    Path(path).parent.mkdir(mode=FOLDER, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        Path(temporary).unlink()
    Path(temporary).symlink_to(target)
    Path(temporary).rename(path)
    sync_folder(str(Path(path).parent))


def _load(root: str, item: dict[str, Any]) -> list[str]:
    """Import an image archive into containerd. Returns faults."""
    archive = posixpath.join(version_folder(root, item), item["members"][0])
    try:
        _ctr(["images", "import", archive], IMPORT_SECONDS)
        if item["reference"] not in (loaded_images() or ()):
            return [
                f"{title(item)}: {archive} was imported, but containerd has no image {item['reference']}: "
                "the archive names another one"
            ]
        # No registry has it to give back: the kubelet must not clear it away when the disk fills.
        _ctr(["images", "label", item["reference"], PINNED], IMPORT_SECONDS)
    except ArtifactsError as error:
        return [
            f"{title(item)}: containerd does not take {archive}: {error}. "
            "See that containerd runs (systemctl status containerd) and run again"
        ]
    return []
