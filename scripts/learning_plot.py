#!/usr/bin/env python3
"""Draws metrics.jsonl of several runs as one SVG, and prints a table of them.

    learning_plot.py SVG RUN_DIR...

Losses are means of 10 steps; recall is that of the validations.
"""

import json
import math
import os
import sys
from html import escape

PANELS = [
    ("loss_itc", "contrastive loss (ITC)"),
    ("loss_itm", "matching loss (ITM)"),
    ("loss_lm", "generation loss (ITG)"),
    ("recall", "mean recall, held out, %"),
]
COLOURS = ["#2a78d6", "#d9730d", "#7a7f87"]
WIDTH, HEIGHT, GAP, TOP, LEFT, WINDOW = 360, 170, 70, 58, 46, 10


def read(run):
    """The curves of a run: lists of (step, value) by the names of PANELS."""
    curves = {name: [] for name, _ in PANELS}
    with open(os.path.join(run, "metrics.jsonl")) as lines:
        for record in map(json.loads, lines):
            if record["kind"] == "train":
                for name in ("loss_itc", "loss_itm", "loss_lm"):
                    curves[name].append((record["step"], record[name]))
            elif record["kind"] == "validation":
                curves["recall"].append((record["step"], mean_recall(record["itc"])))
    for name in ("loss_itc", "loss_itm", "loss_lm"):
        curves[name] = smoothed(curves[name])
    return curves


def mean_recall(pair):
    values = [value for side in ("text", "image") for value in pair[side].values()]
    return sum(values) / len(values)


def smoothed(points):
    means = []
    for start in range(0, len(points) - WINDOW + 1, WINDOW):
        part = points[start : start + WINDOW]
        means.append((part[-1][0], sum(value for _, value in part) / WINDOW))
    return means


def ticks(low, high):
    step = 10 ** math.floor(math.log10((high - low) / 2))
    while (high - low) / step > 6:
        step *= 2 if str(step).lstrip("0.").startswith(("1", "4")) else 2.5
    first = math.ceil(low / step) * step
    return [first + index * step for index in range(int((high - first) / step + 1e-9) + 1)]


def panel(index, name, title, runs):
    x0, y0 = LEFT + index % 2 * (WIDTH + GAP), TOP + index // 2 * (HEIGHT + GAP)
    points = [point for _, curves in runs for point in curves[name]]
    last = max(step for step, _ in points)
    low, high = min(v for _, v in points), max(v for _, v in points)
    if name == "recall":
        low = 0
    margin = 0.05 * (high - low)
    low, high = low - (0 if name == "recall" else margin), high + margin

    def place(step, value):
        return f"{x0 + step / last * WIDTH:.1f},{y0 + HEIGHT - (value - low) / (high - low) * HEIGHT:.1f}"

    out = [f'<text class="title" x="{x0}" y="{y0 - 10}">{escape(title)}</text>']
    for value in ticks(low, high):
        y = place(0, value).split(",")[1]
        out.append(f'<path class="grid" d="M{x0},{y}h{WIDTH}"/>')
        out.append(f'<text class="tick end" x="{x0 - 6}" y="{float(y) + 4:.1f}">{value:.4g}</text>')
    for step in ticks(0, last):
        x = place(step, low).split(",")[0]
        out.append(f'<text class="tick middle" x="{x}" y="{y0 + HEIGHT + 16}">{step:.0f}</text>')
    for (_, curves), colour in reversed(list(zip(runs, COLOURS))):
        line = " ".join(place(*point) for point in curves[name])
        out.append(f'<polyline points="{line}" stroke="{colour}"/>')
    return out


def draw(runs):
    width, height = LEFT + 2 * WIDTH + GAP + 16, TOP + 2 * HEIGHT + GAP + 44
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>Losses and recall by step</title>",
        "<style>text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600}.tick{fill:#59636e}"
        ".end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#d1d9e0;stroke-width:1}"
        "polyline{fill:none;stroke-width:2;stroke-linejoin:round}rect{fill:#fff}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.tick{fill:#9198a1}.grid{stroke:#3d444d}rect{fill:#0d1117}}"
        "</style>",
        f'<rect width="{width}" height="{height}" rx="6"/>',
    ]
    x = LEFT
    for (name, _), colour in zip(runs, COLOURS):
        out.append(f'<path d="M{x},20h18" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{x + 24}" y="24">{escape(name)}</text>')
        x += 44 + 7 * len(name)
    for index, (name, title) in enumerate(PANELS):
        out += panel(index, name, title, runs)
    out.append(f'<text class="tick end" x="{width - 16}" y="{height - 8}">steps</text></svg>')
    return "\n".join(out) + "\n"


def table(runs):
    print("| run | step | ITC | ITM | ITG | mean recall, % |\n|---|---|---|---|---|---|")
    for name, curves in runs:
        recalls = dict(curves["recall"])
        for step, _ in curves["recall"]:
            losses = [dict(curves[loss]).get(step) for loss in ("loss_itc", "loss_itm", "loss_lm")]
            cells = [f"{loss:.3f}" if loss is not None else "" for loss in losses]
            print(f"| {name} | {step} | {' | '.join(cells)} | {recalls[step]:.1f} |")


def main(svg, *folders):
    runs = [(os.path.basename(folder).replace("-", " "), read(folder)) for folder in folders]
    with open(svg, "w") as file:
        file.write(draw(runs))
    table(runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
