"""A guest that is an ordinary process: user-mode Linux, on this machine's files by hostfs.

It has IPIP and most else, but neither WireGuard nor nftables' tables (so felix needs iptables' legacy
backend), and one processor. It is several times faster than QEMU without KVM.
"""

import shlex
import subprocess

from tortie.lab import guestkernel
from tortie.lab.guest import Guest
from tortie.lab.guestkernel import Flavour

_MEMORY = "2G"  # what is not used is not taken from the host

# It has helpers that outlive it when it is killed, but not their namespace. The first process in there cannot
# be one that ends itself by a signal, as it does in a panic.
_ALONE = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"]

# The first process, on the host's root, read-only: puts a tmpfs over it, and on into that.
_INIT = """\
#!/bin/sh
fail() {{ echo "guest: $1 failed"; busybox poweroff -f; }}
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
modprobe -d {kernel} -a overlay ipv6 || fail modprobe
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root || fail overlay
mount -t hostfs -o {folder} exchange /mnt/root{folder} || fail exchange
mkdir -p /mnt/root/lib/modules
mount --bind {kernel}/lib/modules /mnt/root/lib/modules || fail modules
umount /proc
cd /mnt/root && pivot_root . mnt && umount -l /mnt || fail pivot_root
exec sh {folder}/start
"""


class UserMode:
    """guest.Machine. The first console is the command's, the second the kernel's."""

    tty = "tty0"

    def boot(self, guest: Guest) -> "subprocess.Popen[bytes]":
        kernel = guestkernel.fetched(Flavour.USER_MODE)
        init = guest.folder / "init"
        script = _INIT.format(kernel=shlex.quote(str(kernel.folder)), folder=shlex.quote(str(guest.folder)))
        init.write_text(script)
        init.chmod(0o755)
        argv = [
            *_ALONE, str(kernel.image), f"mem={_MEMORY}", f"uml_dir={guest.folder}/", "umid=uml",
            "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}",
            "con=null", "con0=fd:0,fd:1", "con1=null,fd:2", "console=tty1", "loglevel=5",
        ]  # fmt: skip
        return guest.spawn(argv, "console", terminal=guest.terminal)
