"""What would give full isolation on a machine that refuses it."""

import os
import sys
from pathlib import Path

# Switches of Linux distributions, and the value that forbids.
_SWITCHES = {
    "kernel/unprivileged_userns_clone": ("0", "1"),  # Debian
    "user/max_user_namespaces": ("0", "10000"),  # RHEL
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),  # Ubuntu 23.10 and later
}
_CONTAINER_SIGNS = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")


def advice() -> str:
    """What to do, most likely first; always with the weaker choice."""
    if sys.platform != "linux":
        return "use Linux (on Windows WSL 2, on macOS a Linux machine), or accept `isolation: process` by name"
    found = [
        f"set sysctl {switch.replace('/', '.')}={wanted}"
        for switch, (forbids, wanted) in _SWITCHES.items()
        if _value(switch) == forbids
    ]
    if any(os.path.exists(sign) for sign in _CONTAINER_SIGNS):
        found.append(
            "start the container so that it may make namespaces: docker run --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined, or --privileged"
        )
    weaker = "accept `isolation: process` by name, which shares the machine and, where it has no Landlock, its files"
    return "; or ".join([*found, weaker])


def _value(switch: str) -> str | None:
    path = Path("/proc/sys") / switch
    return path.read_text().strip() if path.is_file() else None
