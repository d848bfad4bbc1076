"""A guest in QEMU: a kernel with everything (WireGuard, nftables, IPIP), on this machine's files by virtiofs.

KVM is used where it works. Without it Python is 10 to 20 times slower in there than outside.
"""

import lzma
import os
import resource
import stat
import subprocess
import time
from pathlib import Path

from tortie.core import files
from tortie.lab import guestkernel
from tortie.lab.box import LabError
from tortie.lab.guest import WITH_US, Guest
from tortie.lab.guestkernel import Flavour, Kernel

_MEMORY = "2G"  # two nodes and etcd take half of it; what is not used is not taken from the host
_CORES = "2"
_VIRTIOFSD = "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"  # its own package's, Debian 12's QEMU's
_QEMU = "qemu-system-x86_64"
_BARE = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
_KVM = ["-accel", "kvm", "-cpu", "host"]
_KVM_TIMEOUT = 60.0  # seconds; where it works a start takes less than one, unless the machine is busy
_UP_TIMEOUT = 120.0  # seconds until virtiofsd listens, on a busy machine
_MODULES = ("virtio_pci", "virtiofs", "overlay")  # what the way to the host's file system needs
_BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static: runs without any library

# Modules in the order of their names, then the host's root read-only under a tmpfs, and on into it.
_INIT = """\
#!/busybox sh
fail() { /busybox echo "guest: $1 failed"; /busybox poweroff -f; }
/busybox mount -t proc proc /proc
for word in $(/busybox cat /proc/cmdline); do
    case $word in exchange=* | modules=*) eval "$word" ;; esac
done
for module in /modules/*; do /busybox insmod "$module" || fail "$module"; done
/busybox mount -t virtiofs host /host || fail virtiofs
/busybox mount -t tmpfs -o mode=755 tmpfs /space
/busybox mkdir /space/upper /space/work
layers=lowerdir=/host,upperdir=/space/upper,workdir=/space/work
/busybox mount -t overlay -o $layers overlay /root || fail overlay
/busybox mount --bind "/host$exchange" "/root$exchange" || fail exchange
/busybox mkdir -p /root/lib/modules
/busybox mount --bind "/host$modules" /root/lib/modules || fail modules
/busybox umount /proc
exec /busybox switch_root /root /bin/sh "$exchange/start"
"""


class Qemu:
    """guest.Machine. The first serial line is the command's, the second the kernel's console."""

    tty = "ttyS0"

    def boot(self, guest: Guest) -> "subprocess.Popen[bytes]":
        kernel = guestkernel.fetched(Flavour.CLOUD)
        (guest.folder / "initramfs").write_bytes(initramfs(kernel))
        server = guest.spawn(_file_server(), "virtiofsd")
        deadline = time.monotonic() + _UP_TIMEOUT
        while not (guest.folder / "fs.sock").exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"virtiofsd does not listen\n{guest.evidence('virtiofsd')}")
            time.sleep(0.01)
        first = "stdio,signal=off" if guest.terminal else "file,path=output"
        boot = f"console=ttyS1 loglevel=5 panic=-1 exchange={guest.folder} modules={kernel.modules}"
        argv = [
            _QEMU, *_BARE, *acceleration(kernel),
            "-machine", "pc,memory-backend=memory", "-smp", _CORES, "-m", _MEMORY,
            "-object", f"memory-backend-memfd,id=memory,share=on,size={_MEMORY}",
            "-kernel", str(kernel.image), "-initrd", "initramfs", "-append", boot,
            "-chardev", "socket,id=fs,path=fs.sock", "-device", "vhost-user-fs-pci,chardev=fs,tag=host",
            "-chardev", f"{first},id=first", "-serial", "chardev:first",
            "-chardev", "file,id=second,path=console", "-serial", "chardev:second",
        ]  # fmt: skip
        return guest.spawn(argv, "qemu", terminal=guest.terminal)


def _file_server() -> list[str]:
    """virtiofsd's command line: C in Debian 12's QEMU, a program of its own in Rust since."""
    path = next((path for path in _VIRTIOFSD if os.access(path, os.X_OK)), None)
    if path is None:
        raise LabError(f"virtiofsd is missing ({' or '.join(_VIRTIOFSD)}): run ./dev, or install it")
    # It has a descriptor for every file that the guest knows of, and may not be allowed to raise its limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limited = ["prlimit", f"--nofile={most}:{most}", path, "--socket-path=fs.sock", "--rlimit-nofile=0"]
    if path == _VIRTIOFSD[0]:  # as mounts of their own, /proc and the like could not be part of an overlay
        as_folders = "--no-announce-submounts"
        return [*limited, "--shared-dir=/", "--cache=always", "--sandbox=chroot", as_folders]
    return [*limited, "-f", "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"]


def acceleration(kernel: Kernel) -> list[str]:
    """QEMU's options for the fastest way that works here."""
    if kvm_works(kernel):
        return _KVM
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def kvm_works(kernel: Kernel) -> bool:
    """Whether the kernel boots with it, found out once each time that the machine was started.

    In a virtual machine it may be there, and the guest hang or QEMU crash: only trying tells.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    remembered = kernel.folder / "kvm"
    try:
        known, works = remembered.read_text().split()
    except (OSError, ValueError):
        known = works = ""
    if known != boot:
        works = "yes" if _boots(kernel) else "no"
        files.write_atomic(str(remembered), f"{boot} {works}\n")
    return works == "yes"


def _boots(kernel: Kernel) -> bool:
    """Without a root file system it panics at the end of its start, and QEMU ends with that."""
    argv = [
        *WITH_US,
        _QEMU,
        *_BARE,
        *_KVM,
        "-m",
        "512M",
        "-kernel",
        str(kernel.image),
        "-append",
        "panic=-1",
    ]
    try:
        return subprocess.run(argv, capture_output=True, check=False, timeout=_KVM_TIMEOUT).returncode == 0
    except subprocess.TimeoutExpired:
        return False


# --- the initramfs: cpio in newc format, Documentation/driver-api/early-userspace/buffer-format.rst -------


def initramfs(kernel: Kernel) -> bytes:
    """busybox, the modules and the script above."""
    found = {"busybox": (0o755, _BUSYBOX.read_bytes()), "init": (0o755, _INIT.encode())}
    for number, path in enumerate(kernel.module_files(*_MODULES)):
        data = path.read_bytes()
        found[f"modules/{number:03}"] = (0o644, lzma.decompress(data) if path.suffix == ".xz" else data)
    return archive(["modules", "proc", "host", "space", "root", "dev"], found)


def archive(folders: list[str], files: dict[str, tuple[int, bytes]]) -> bytes:
    """Folders, and files (name -> mode, content), as the kernel unpacks them."""
    parts = [_entry(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    parts += [_entry(name, stat.S_IFREG | mode, data) for name, (mode, data) in files.items()]
    return b"".join([*parts, _entry("TRAILER!!!", 0, b"")])


def _entry(name: str, mode: int, data: bytes) -> bytes:
    path = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and special file's device (major, minor), name, check
    numbers = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0]
    head = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _padded(head + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
