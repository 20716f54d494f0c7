# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The disks nodes start from: built once by mmdebstrap and kept under a digest of their recipe."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from .access import lab_cache, pack_tree
from .model import LABEL, SUITES, LabError
from .podman import podman
from .system import locked, private_folder, run, say, step

ROOTFS = Path(__file__).resolve().parent.parent / "rootfs"
PACKAGES = {
    # What a plain server has, and what the roles would install: runs then measure plainkube, not a package mirror.
    "common": [
        "ca-certificates",
        "conntrack",
        "curl",
        "dbus",
        "ebtables",
        "ethtool",
        "haproxy",
        "iproute2",
        "ipset",
        "iptables",
        "kmod",
        "nftables",
        "openssh-server",
        "openssl",
        "procps",
        "python3",
        "restic",
        "socat",
        "sudo",
        "systemd",
        "systemd-sysv",
        "udev",
    ],
    "container": [],
    "vm": ["initramfs-tools", "linux-image-cloud-amd64", "zstd"],
}
# Timers would disturb measurements; services are for the roles to start.
DISABLED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "haproxy.service",
    "nftables.service",
]
HOOKS = {
    "common": [
        # Each node gets its own of these.
        'rm -f "$1"/etc/ssh/ssh_host_* && : > "$1"/etc/machine-id',
        "for unit in "
        + " ".join(DISABLED)
        + '; do chroot "$1" systemctl disable --quiet "$unit" 2>/dev/null || :; done',
    ],
    # Device events and binary formats belong to the machine that the containers share.
    "container": [
        "for unit in console-getty.service getty.target systemd-binfmt.service systemd-udev-trigger.service;"
        ' do chroot "$1" systemctl mask --quiet "$unit"; done',
    ],
    "vm": [
        'chroot "$1" update-initramfs -u -k all >&2',
        'chroot "$1" systemctl enable --quiet systemd-networkd.service lab-identity.service serial-getty@ttyS0.service',
    ],
}
DISK_SIZE = "10G"


def overlay(kind: str, root: Path = ROOTFS) -> bytes:
    """The files of rootfs/common and rootfs/<kind> as a tar archive owned by root."""
    files: dict[str, tuple[int, bytes]] = {}
    for folder in (root / "common", root / kind):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                files[str(path.relative_to(folder))] = (mode, path.read_bytes())
    return pack_tree(files)


def recipe(kind: str, suite: str) -> list[str]:
    """mmdebstrap's arguments, but for the files to add and the target. It chooses the suite's usual mirrors itself."""
    packages = sorted({*PACKAGES["common"], *PACKAGES[kind]})
    hooks = [*HOOKS["common"], *HOOKS[kind]]
    return [
        "--variant=minbase",
        f"--include={','.join(packages)}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "info", "locale", "man")),
        *(f"--customize-hook={hook}" for hook in hooks),
        suite,
    ]


def digest(kind: str, suite: str) -> str:
    """Names an image by everything that goes into it, but for the packages' versions."""
    content = "\0".join([*recipe(kind, suite), DISK_SIZE]).encode() + overlay(kind)
    return hashlib.sha256(content).hexdigest()[:12]


def images_folder() -> Path:
    return private_folder(lab_cache() / "images")


def bootstrap(kind: str, suite: str, target: Path) -> None:
    """Makes a root file system: a folder, or a tar archive if the name ends with .tar."""
    if not shutil.which("mmdebstrap"):
        raise LabError("mmdebstrap is missing: apt-get install mmdebstrap")
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        archive.write(overlay(kind))
        archive.flush()
        *options, name = recipe(kind, suite)
        # Hooks run in the order given: the files first, then what enables their units.
        run(["mmdebstrap", f"--customize-hook=tar-in {archive.name} /", *options, name, target])


def container_image(suite: str) -> str:
    """The image for containers of this suite."""
    return f"localhost/plainkube-lab:{suite}-{digest('container', suite)}"


def ensure_container_image(suite: str) -> str:
    image = container_image(suite)
    if podman("image", "exists", image, check=False).returncode == 0:
        return image
    with locked(images_folder() / "lock"):
        archive = images_folder() / f"{image.rpartition(':')[2]}.tar"
        if not archive.exists():
            _remove_unfinished()
            with step(f"building the {suite} root file system for containers (30 s on an idle machine)"):
                temporary = archive.with_name(f".{archive.name[:-4]}.new.tar")
                bootstrap("container", suite, temporary)
                temporary.replace(archive)
            _remove_older(suite, image)
        if podman("image", "exists", image, check=False).returncode:
            with step(f"importing it as {image}"):
                podman("import", "--change", f"LABEL={LABEL}.image={suite}", archive, image)
    return image


def machine_image(suite: str) -> Path:
    """Folder of the disk, kernel and initrd that virtual machines of this suite start from."""
    return images_folder() / f"vm-{suite}-{digest('vm', suite)}"


def ensure_machine_image(suite: str) -> Path:
    folder = machine_image(suite)
    if folder.exists():
        return folder
    with locked(images_folder() / "lock"):
        if not folder.exists():
            _remove_unfinished()
            work = Path(tempfile.mkdtemp(prefix=".vm-", dir=images_folder()))
            try:
                _build_machine_image(suite, work)
                work.rename(folder)
                _remove_older_disks(suite, folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def _build_machine_image(suite: str, work: Path) -> None:
    root = work / "root"
    with step(f"building the {suite} root file system for virtual machines (45 s on an idle machine)"):
        bootstrap("vm", suite, root)
    for name in ("vmlinuz", "initrd.img"):
        (installed,) = (root / "boot").glob(f"{name}-*")
        shutil.copyfile(installed, work / name)
    with step(f"making a disk of {DISK_SIZE} of it"):
        run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", root, work / "disk.img", DISK_SIZE])
    shutil.rmtree(root)


def _remove_unfinished() -> None:
    """Removes what a killed run left; called while holding the lock. Whatever might be mounted there is spared."""
    for leftover in images_folder().glob(".*"):
        run(["rm", "-rf", "--one-file-system", leftover])


def _remove_older(suite: str, image: str) -> None:
    """Removes what an earlier recipe made for this suite, but for images that a node still uses."""
    for archive in images_folder().glob(f"{suite}-*.tar"):
        if archive.stem != image.rpartition(":")[2]:
            archive.unlink()
    for name in _image_names(suite):
        if name != image:
            podman("image", "rm", name, check=False)


def _remove_older_disks(suite: str, folder: Path) -> None:
    used = {link.resolve() for link in (lab_cache() / "labs").glob("*/*/image")}
    for other in images_folder().glob(f"vm-{suite}-*"):
        if other != folder and other.resolve() not in used:
            shutil.rmtree(other)


def _image_names(suite: str) -> list[str]:
    label = f"label={LABEL}.image={suite}" if suite else f"label={LABEL}.image"
    return podman("image", "ls", "--filter", label, "--format", "{{.Repository}}:{{.Tag}}").stdout.split()


def remove_images() -> None:
    """Removes all images, but for those that a node of another lab still uses."""
    for name in _image_names(""):
        if podman("image", "rm", name, check=False).returncode:
            say(f"image {name} stays: another lab uses it")
    for suite in SUITES:
        _remove_older_disks(suite, images_folder())
    for archive in images_folder().glob("*.tar"):
        archive.unlink()
