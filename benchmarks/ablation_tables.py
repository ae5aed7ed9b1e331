"""The rows of `ablations.py` as Markdown tables and SVG plots: means, their spread, how many there were."""

import argparse
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
GUIDANCE_COLUMNS = {
    "animate": "mouth and the true opening",
    "animate_other": "and another's",
    "itself": "mouth and the sound made with it",
    "itself_other": "and another's",
    "errors": "phoneme errors",
}
TRAINED_COLUMNS = {
    "follows": "follows the other stream",
    "other": "another clip's",
    "iou_taught": "M and the face",
    "iou": "at the end",
}
TRAINED_ALIKE = ("steps", "batch", "lr", "sizes", "side", "clips", "unseen")
ASKED = {"a2v": "lips follow the sound (A2V)", "v2a": "sound follows the lips (V2A)"}
COLOURS = ("#c2410c", "#0f766e", "#6d28d9", "#1d4ed8", "#64748b")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 300, 56, 44, 16


def write(options: argparse.Namespace) -> None:
    """Write tables.md and the plots beside the rows of what was measured."""
    out: Path = options.out
    parts = []
    if rows := alike(read(out / "guidance.jsonl"), ("weights", "steps", "seed")):
        parts.append("## Guidance\n\n" + guidance_table(rows))
        for key, title in (
            ("animate", "animate: mouth and true opening"),
            ("itself", "generate: mouth and sound"),
        ):
            (out / f"guidance-{key}.svg").write_text(lines_svg(rows, key, title), encoding="utf-8")
    if rows := read(out / "trained.jsonl"):
        rows = [
            row
            for direction in ASKED
            for row in alike([row for row in rows if row["direction"] == direction], TRAINED_ALIKE)
        ]
        interaction = [row for row in rows if row["mask"] == "decaying"]
        mask = [row for row in rows if row["rule"] == "asymmetric"]
        for name, chosen, key in (("interaction", interaction, "rule"), ("mask", mask, "mask")):
            if not chosen:
                continue
            table = trained_table(chosen, key)
            parts.append(f"## {name.capitalize()}\n\n{table}")
            picture = dots_svg(chosen, key, name)
            (out / f"{name}.svg").write_text(picture, encoding="utf-8")
            if options.page is not None:
                fill(options.page, name, table)
                plots = options.page.parent / "plots"
                plots.mkdir(exist_ok=True)
                (plots / f"{name}.svg").write_text(picture, encoding="utf-8")
    (out / "tables.md").write_text("\n".join(parts), encoding="utf-8")


def fill(page: Path, name: str, table: str) -> None:
    """Put a table and its plot between `<!-- name -->` and `<!-- /name -->` of a page."""
    text = page.read_text(encoding="utf-8")
    before, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise SystemExit(f"{page} has no place for {name}: <!-- {name} --> and <!-- /{name} -->")
    filled = f"{before}{start}\n{table}\n![{name}](plots/{name}.svg)\n\n{end}{after}"
    page.write_text(filled, encoding="utf-8")


def read(path: Path) -> list[Row]:
    """The rows of a journal; a last one that a kill left half written is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def alike(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """The rows of runs like the last one, by these of their settings: others are no part of its table."""
    return [row for row in rows if all(row.get(key) == rows[-1].get(key) for key in keys)]


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def mean_and_spread(rows: Sequence[Row], key: str) -> tuple[float, float]:
    """The mean, and the standard deviation over rows (0 for one of them)."""
    values = np.array([row[key] for row in rows if key in row], float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def guidance_table(rows: Sequence[Row]) -> str:
    """A line a setting: the mean over clips and its standard error, all settings on the same clips."""
    lines = ["| guidance | scale | " + " | ".join(GUIDANCE_COLUMNS.values()) + " | clips |"]
    lines.append("|---" * (len(GUIDANCE_COLUMNS) + 3) + "|")
    for (kind, scale), members in grouped(rows, ("kind", "scale")).items():
        cells = []
        for key in GUIDANCE_COLUMNS:
            mean, spread = mean_and_spread(members, key)
            cells.append(f"{mean:.3f} ± {spread / np.sqrt(len(members)):.3f}")
        lines.append(f"| {kind} | {scale:g} | " + " | ".join(cells) + f" | {len(members)} |")
    steps = sorted({row["steps"] for row in rows})
    return "\n".join([*lines, "", f"Mean and its standard error; {steps[0]} sampling steps.", ""])


def trained_table(rows: Sequence[Row], arm: str) -> str:
    """A line an arm of a direction: the mean over seeds and their standard deviation."""
    lines = [f"| asked | {arm} | " + " | ".join(TRAINED_COLUMNS.values()) + " | seeds |"]
    lines.append("|---" * (len(TRAINED_COLUMNS) + 3) + "|")
    about = []
    for (direction, name), members in grouped(rows, ("direction", arm)).items():
        found = [mean_and_spread(members, key) for key in TRAINED_COLUMNS]
        cells = [
            f"{mean:.3f} ± {spread:.3f}" if len(members) > 1 else f"{mean:.3f}" for mean, spread in found
        ]
        if name == "none":
            cells[2:] = "–", "–"  # M is 1 everywhere
        lines.append(f"| {ASKED[direction]} | {name} | " + " | ".join(cells) + f" | {len(members)} |")
    for (direction,), members in grouped(rows, ("direction",)).items():
        one = members[0]
        about.append(f"{ASKED[direction]}: {one['steps']} steps of {one['batch']} clips")
    size = f"{one['parameters'] / 1e6:.1f} M parameters, {one['clips']} clips learnt from, "
    size += f"{one['unseen']} unseen"
    told = f"Mean and standard deviation over seeds. {'; '.join(about)}; {size}."
    return "\n".join([*lines, "", told, ""])


def lines_svg(rows: Sequence[Row], key: str, title: str) -> str:
    """The figure over the guidance scale, a line a kind, with standard errors; none at scale 1."""
    points = {}
    for (kind, scale), members in grouped(rows, ("kind", "scale")).items():
        mean, spread = mean_and_spread(members, key)
        points.setdefault(kind, []).append((scale, mean, spread / np.sqrt(len(members))))
    x_of = _axis([p[0] for line in points.values() for p in line], LEFT + 10, WIDTH - 200)
    y_of, ticks = _figures([p[1] + s * p[2] for line in points.values() for p in line for s in (-1, 1)])
    parts = [*_frame(title, ticks, y_of), _text(WIDTH - 330, HEIGHT - 6, "guidance scale")]
    for scale in sorted({p[0] for line in points.values() for p in line}):
        parts.append(_text(x_of(scale) - 6, HEIGHT - BOTTOM + 16, f"{scale:g}"))
    for number, (kind, line) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y, _ in sorted(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_point(x_of(x), y_of(y), y_of(y - e), y_of(y + e), colour) for x, y, e in line]
        parts.append(_text(WIDTH - 190, TOP + 20 + 18 * number, kind, colour))
    return _svg(parts, title)


def dots_svg(rows: Sequence[Row], arm: str, title: str) -> str:
    """Every seed as a dot and the mean as a bar, an arm a column, a colour a direction; grey its control."""
    y_of, ticks = _figures([row[key] for row in rows for key in ("follows", "other")] + [0.0])
    parts = _frame(title, ticks, y_of)
    columns = list(grouped(rows, (arm,)))
    step = (WIDTH - LEFT - 150) / max(1, len(columns))
    for column, (name,) in enumerate(columns):
        parts.append(_text(LEFT + 8 + column * step, HEIGHT - BOTTOM + 16, name))
    for (direction, name), members in grouped(rows, ("direction", arm)).items():
        number = list(ASKED).index(direction)
        for key, colour in (("other", COLOURS[-1]), ("follows", COLOURS[number])):
            x = LEFT + 18 + columns.index((name,)) * step + number * 36 + (12 if key == "other" else 0)
            mean, _ = mean_and_spread(members, key)
            parts.append(
                f'<line x1="{x - 6:.1f}" x2="{x + 6:.1f}" y1="{y_of(mean):.1f}" y2="{y_of(mean):.1f}" '
                f'stroke="{colour}" stroke-width="3"/>'
            )
            parts += [
                f'<circle cx="{x:.1f}" cy="{y_of(row[key]):.1f}" r="3" fill="{colour}" fill-opacity="0.5"/>'
                for row in members
            ]
    for number, (direction, colour) in enumerate([*zip(ASKED, COLOURS, strict=False), ("", COLOURS[-1])]):
        name = ASKED[direction].partition(" (")[0] if direction else "another clip's"
        parts.append(_text(WIDTH - 140, TOP + 20 + 18 * number, name, colour))
    return _svg(parts, title)


def _axis(values: Sequence[float], low: float, high: float) -> Any:
    least, most = min(values), max(values)
    return lambda value: low + (value - least) / ((most - least) or 1.0) * (high - low)


def _figures(values: Sequence[float]) -> tuple[Any, list[float]]:
    least, most = min(values), max(values)
    room = 0.08 * ((most - least) or 1.0)
    axis = _axis([least - room, most + room], HEIGHT - BOTTOM, TOP)
    return axis, [float(tick) for tick in np.linspace(least, most, 5)]


def _frame(title: str, ticks: Sequence[float], y_of: Any) -> list[str]:
    grid = [
        f'<line x1="{LEFT}" x2="{WIDTH - 150}" y1="{y_of(t):.1f}" y2="{y_of(t):.1f}" stroke="#cbd5e1"/>'
        + _text(4, y_of(t) + 4, f"{t:.3f}")
        for t in ticks
    ]
    return [_text(LEFT, TOP - 3, title), *grid]


def _point(x: float, y: float, low: float, high: float, colour: str) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>'
    )


def _text(x: float, y: float, text: str, colour: str = "#334155") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="12">{html.escape(text)}</text>'


def _svg(parts: Sequence[str], title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    return f'{head} role="img" aria-label="{html.escape(title)}">' + "".join(parts) + "</svg>\n"
