#!/usr/bin/env python3
"""Draws one of the paths that the test of the theorem prints (SEED, by default 2), as docs/nash.svg:

    cargo test --test main theorem -- --nocapture | python scripts/plot_nash.py [SEED] > docs/nash.svg
"""

import sys

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 320, 50, 40, 0.5
COLOURS = {"sppo average": "#1f6feb", "sppo last": "#9ec5fe", "dpo average": "#d1242f"}


def main():
    lines = [line.strip().split(",") for line in sys.stdin]
    seed = sys.argv[1] if len(sys.argv) > 1 else "2"
    names = next(line for line in lines if line[1:2] == ["iteration"])[2:]
    rows = [line[1:] for line in lines if len(line) == len(names) + 2 and line[0] == seed]
    last = int(rows[-1][0])
    x = lambda i: LEFT + (WIDTH - LEFT - 10) * i / last
    y = lambda v: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 10) * min(v, TOP) / TOP
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">')
    print(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for tick in [0, 0.1, 0.2, 0.3, 0.4, 0.5]:
        print(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - 10}" stroke="#ddd"/><text x="12" y="{y(tick) + 4:.1f}">{tick}</text>')
    for tick in range(0, last + 1, max(1, last // 6)):
        print(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick}</text>')
    for column, name in sorted(enumerate(names, 1), key=lambda c: c[1] != "sppo last"):
        points = " ".join(f"{x(int(row[0])):.1f},{y(float(row[column])):.1f}" for row in rows)
        print(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"/>')
    for i, name in enumerate(names):
        print(f'<text x="{WIDTH - 130}" y="{60 + 16 * i}" fill="{COLOURS[name]}">{name}</text>')
    print(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">iteration (exploitability, 0 at the equilibrium)</text></svg>')


if __name__ == "__main__":
    main()
