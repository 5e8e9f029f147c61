"""Advises administrators how to get full sandbox isolation on a machine that refuses it."""

import os
import sys
from pathlib import Path

# Switches of Linux distributions, and the value that forbids.
_KERNEL_SETTINGS = {
    "kernel/unprivileged_userns_clone": ("0", "1"),  # Debian
    "user/max_user_namespaces": ("0", "10000"),  # RHEL
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),  # Ubuntu 23.10 and later
}
_CONTAINER_SIGNS = ("/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io")


def suggest_isolation_fixes() -> str:
    """Returns advice on how to make full sandbox isolation possible on this machine, likeliest fix first."""
    if sys.platform != "linux":
        return "use Linux (on Windows WSL 2, on macOS a Linux machine), or accept `isolation: process` by name"
    fixes = [
        f"set sysctl {switch.replace('/', '.')}={allows}"
        for switch, (forbids, allows) in _KERNEL_SETTINGS.items()
        if _read_kernel_setting(switch) == forbids
    ]
    if any(os.path.exists(path) for path in _CONTAINER_SIGNS):
        fixes.append(
            "start the container so that it may make namespaces: docker run --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined, or --privileged"
        )
    without = (
        "accept `isolation: process` by name and as an ordinary user, which shares the machine and, where it has no "
        "Landlock, its files"
    )
    return "; or ".join([*fixes, without])


def _read_kernel_setting(setting: str) -> str | None:
    """Reads a kernel setting as text. Returns None if the kernel does not have it."""
    path = Path("/proc/sys") / setting
    return path.read_text().strip() if path.is_file() else None
