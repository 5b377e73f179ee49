"""A roofline picture of a file of results: python bench/roofline.py RESULTS.json PICTURE.png"""

from __future__ import annotations

import math
import sys

OURS, THEIRS, ROOF = "#1f6feb", "#9aa5b1", "#3d4754"


def draw(content, path) -> None:
    """Draw arithmetic intensity (float operations a byte) against GFLOP/s, of fastnn and of the best of the others.

    Bytes are those that a case must move at least; roofs are the machine's measured ceilings, of memory and of its caches.
    Raises ImportError without matplotlib, ValueError where no ceilings were measured.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "fastnn-kernels[train]"') from error
    if not content["peak"]:
        raise ValueError("no ceilings were measured, so there is no roof to draw")
    peak, bandwidths = content["peak"]["gflops"], content["peak"]["bandwidth"]
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    axes = figure.subplots()
    points = []
    for entry in content["results"]:
        speeds = {name: f["gflops"] for name, f in entry["contenders"].items() if "gflops" in f}
        if not speeds:
            continue
        intensity = entry["flops"] / entry["bytes"]
        others = [speed for name, speed in speeds.items() if not name.startswith("fastnn")]
        points.append((intensity, speeds.get("fastnn"), max(others, default=None)))
    roofs = [(bandwidths[-1], "memory"), (max(bandwidths, key=lambda pair: pair[1]), "caches")]
    low = (
        min([x for x, _, _ in points] + [peak / gbps for (_, gbps), _ in roofs]) / 4
    )  # roofs are seen to rise
    high = max([x for x, _, _ in points] + [peak / gbps for (_, gbps), _ in roofs]) * 2
    for (size, gbps), label in roofs:
        edge = peak / gbps
        xs = [low, max(edge, low), max(high, edge)]
        axes.plot(xs, [min(peak, x * gbps) for x in xs], color=ROOF, linewidth=1.4, zorder=1)
        axes.text(
            low * 1.1,
            low * 1.1 * gbps * 1.12,
            f"{label}: {gbps:.0f} GB/s ({size / 2**20:g} MiB)",
            color=ROOF,
            fontsize=8.5,
            rotation=math.degrees(math.atan(gbps)),  # of data, as the roof rises
            rotation_mode="anchor",
            transform_rotates_text=True,
        )
    threads = content["settings"]["threads"]
    axes.text(
        high, peak * 1.05, f"{peak:.0f} GFLOP/s, {threads} threads", color=ROOF, fontsize=8.5, ha="right"
    )
    for which, colour, label, order in ((2, THEIRS, "the fastest other library", 2), (1, OURS, "fastnn", 3)):
        chosen = [(p[0], p[which]) for p in points if p[which]]
        if chosen:
            axes.scatter(*zip(*chosen, strict=True), s=22, color=colour, label=label, zorder=order)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(top=peak * 1.5)
    axes.set_xlabel("float operations a byte that must be moved")
    axes.set_ylabel("GFLOP/s")
    title = f"{content['machine']['processor']}, {threads} threads, {content['settings']['date']}"
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(which="major", color="#e4e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130, format="png", metadata={"Software": None})


if __name__ == "__main__":
    from fastnn.bench import report

    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(report.load(sys.argv[1]), sys.argv[2])
