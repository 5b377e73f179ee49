"""How much processor time Linux grants to this process: a container's limit, which affinity does not show.

https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and, of version 1, https://docs.kernel.org/scheduler/sched-bwc.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cpu_limit(root: str = "/") -> float | None:
    """In processors: the least of the limits on the process's groups; None where there is none. root: of the file system."""
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system
        return None
    return min(
        (limit for line in lines for limit in _limits(Path(root, "sys/fs/cgroup"), line)), default=None
    )


def _limits(mounted: Path, line: str) -> Iterator[float]:
    """Those of a hierarchy, a line of /proc/self/cgroup: of the process's group and of all that it is in."""
    _, controllers, group = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    path = PurePosixPath(group.lstrip("/"))
    for inside in (path, *path.parents):  # a container may see its own group as the uppermost
        directory = mounted / controllers / inside
        try:
            if controllers:
                quota, period = (
                    (directory / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
                )
            else:
                quota, period = (directory / "cpu.max").read_text().split()
        except OSError:
            continue
        if quota.strip() not in ("max", "-1"):
            yield int(quota) / int(period)
