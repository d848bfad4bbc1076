"""The host's control groups inside the lab, whose sysfs hides them: mounted again, and left as they were.

Containers of the lab's nodes are in the group `k8s.io`, where containerd puts them; the groups themselves
outlive the processes and are the host's.
"""

import subprocess

from tortie.lab.box import LabError

# Both versions: 1 with a hierarchy for each controller, 2 with one.
MOUNT = """
set -e
if [ -z "$(cut -d: -f2 /proc/self/cgroup | tr -d '\\n')" ]; then
    mount -n -t cgroup2 none /sys/fs/cgroup
    exit
fi
mount -n -t tmpfs -o mode=755 none /sys/fs/cgroup
cut -d: -f2 /proc/self/cgroup | while read -r names; do
    folder=/sys/fs/cgroup/${names#name=}
    case $names in
        "") continue ;;
        name=*) names=none,$names ;;
    esac
    mkdir "$folder"
    mount -n -t cgroup -o "$names" none "$folder"
done
"""
# All containers of all nodes together would get as much of the processors as one process outside: on a busy
# machine their probes fail. They get as much as twenty, where that may be said.
WEIGH = """
cd /sys/fs/cgroup
for folder in *cpu*; do
    [ ! -e "$folder/cpu.shares" ] || { mkdir -p "$folder/k8s.io" && echo 20480 >"$folder/k8s.io/cpu.shares"; }
done
[ ! -e cgroup.subtree_control ] || {
    mkdir -p k8s.io && echo +cpu >cgroup.subtree_control && echo 2000 >k8s.io/cpu.weight
}
true
"""
_CLEAR = f"""
[ -n "$(ls /sys/fs/cgroup)" ] || ({MOUNT}) || exit 2
find /sys/fs/cgroup -depth -path '*/k8s.io*' -type d -exec rmdir {{}} + 2>/dev/null
exit 0
"""


def clear() -> None:
    """Remove the groups of containers that have ended, of whichever lab. Raises LabError.

    One with a process stays, which is the kernel's to say: other labs may run on the machine.
    """
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _CLEAR]  # who asks mounts nothing
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"control groups cannot be mounted: {done.stderr}")
