"""Turns `perf script`'s stacks (stdin) into a flame graph (SVG, stdout). A box is as wide as the time spent in it; hover
for its name and share."""

import re
import sys
from html import escape

WIDTH, ROW = 1600, 17


def stacks(lines):
    """Each sample's frames, outermost first."""
    frames = []
    for line in lines:
        if not line.strip():
            if frames:
                yield frames[::-1]
            frames = []
        elif frame := re.match(r"\s+[0-9a-f]+ (.+) \(.*\)$", line):
            name = re.sub(r"\+0x[0-9a-f]+$", "", frame[1])
            frames.append(re.sub(r"::h[0-9a-f]{16}$", "", name))
    if frames:
        yield frames[::-1]


def tree(samples):
    """{name: [samples, children]}"""
    root, total = {}, 0
    for frames in samples:
        total, node = total + 1, root
        for name in frames:
            entry = node.setdefault(name, [0, {}])
            entry[0] += 1
            node = entry[1]
    return root, total


def boxes(node, x, depth, total):
    for name, (count, children) in sorted(node.items()):
        width = count / total * WIDTH
        if width >= 1:
            yield x, depth, width, f"{name} ({count / total:.1%})"
            yield from boxes(children, x, depth + 1, total)
        x += width


def main():
    root, total = tree(stacks(sys.stdin))
    drawn = list(boxes(root, 0, 0, total))
    height = (max(depth for _, depth, _, _ in drawn) + 1) * ROW
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="monospace" font-size="11">')
    for x, depth, width, name in drawn:
        y, hue = height - (depth + 1) * ROW, 10 + hash(name.split(" (")[0]) % 45
        label = escape(name[: max(0, int(width / 7) - 1)])
        print(
            f'<g><title>{escape(name)}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" '
            f'fill="hsl({hue},80%,65%)"/><text x="{x + 3:.1f}" y="{y + 12}">{label}</text></g>'
        )
    print("</svg>")


if __name__ == "__main__":
    main()
