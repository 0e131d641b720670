"""A small vocabulary for the project's pictures: boxes, texts, arrows, in colours that follow light and dark.

A picture is plain SVG. On its own it follows the reader's system; inside a page of the site it follows the page
(`docs/assets/site.css`). Kinds of colour mean the same in all pictures.
"""

from __future__ import annotations

from html import escape

KINDS = {
    "plain": (("#f3f4f6", "#6b7280"), ("#2a2f38", "#9ca3af")),
    "fast": (("#d3f1ea", "#0f766e"), ("#12403a", "#5eead4")),  # the fast tier, HB
    "slow": (("#fde8c8", "#b45309"), ("#4a3310", "#fbbf24")),  # the slow tier, EXT
    "draft": (("#dbe7fd", "#1d4ed8"), ("#1b2f5c", "#93c5fd")),
    "target": (("#e9defb", "#6d28d9"), ("#3a2660", "#c4b5fd")),
    "bad": (("#fbe1e1", "#b91c1c"), ("#4c1d1d", "#fca5a5")),
}
"""(fill, line) in light, (fill, line) in dark."""
EM = 0.57
"""Mean width of a letter by its size, in a wide font."""
INK = ("#1f2328", "#e6edf3")
SOFT = ("#57606a", "#a5b0bc")


def colours(dark: bool) -> str:
    """CSS variables of one scheme."""
    made = [f"--ink:{INK[dark]}", f"--soft:{SOFT[dark]}"]
    for kind, schemes in KINDS.items():
        fill, line = schemes[dark]
        made += [f"--{kind}:{fill}", f"--{kind}-line:{line}"]
    return ";".join(made)


def _style() -> str:
    rules = [
        f".picture{{{colours(False)};max-width:100%;height:auto}}",
        f"@media (prefers-color-scheme:dark){{.picture{{{colours(True)}}}}}",
        ".picture text{fill:var(--ink);font:14px system-ui,sans-serif}",
        ".picture .soft{fill:var(--soft)}",
        ".picture .small{font-size:12px}",
        ".picture .bold{font-weight:600}",
        ".picture .mono{font-family:ui-monospace,monospace}",
        ".picture .arrow{stroke:var(--soft);stroke-width:1.6;fill:none}",
        ".picture .head{fill:var(--soft)}",
        ".picture .dashed{stroke-dasharray:5 4}",
    ]
    for kind in KINDS:
        rules.append(f".picture .{kind}{{fill:var(--{kind});stroke:var(--{kind}-line);stroke-width:1.4}}")
        rules.append(f".picture text.in-{kind}{{fill:var(--{kind}-line)}}")
    return "".join(rules)


class Picture:
    """A drawing of `width` x `height`; (0, 0) is the upper left. Title and description are for who cannot see it."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, w: float, h: float, kind: str = "plain", label: str = "", style: str = ""
    ) -> None:
        """A rounded box with its label (lines by newline) in the middle; `style`: more classes."""
        classes = f"{kind} {'dashed' if 'dashed' in style else ''}".strip()
        self.parts.append(f'<rect class="{classes}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4"/>')
        lines = label.split("\n") if label else []
        step = 15 if "small" in style else 18
        for number, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + 5 + step * (number - (len(lines) - 1) / 2), line, style, "middle")

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        """One line; `style`: soft, small, bold, mono, in-KIND. Raises ValueError where it would leave the picture."""
        width = len(text) * (12 if "small" in style else 14) * EM
        first = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        if first < 0 or first + width > self.width:
            raise ValueError(f"{self.title}: {text!r} is too long")
        classes = f' class="{style}"' if style else ""
        self.parts.append(f'<text{classes} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, *points: tuple[float, float], head: bool = True, style: str = "") -> None:
        """An arrow through points, or without its head a line."""
        path = " ".join(f"{'ML'[number > 0]}{x:g} {y:g}" for number, (x, y) in enumerate(points))
        self.parts.append(f'<path class="arrow {style}" d="{path}"/>')
        if head:
            (x0, y0), (x1, y1) = points[-2:]
            length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
            ux, uy = (x1 - x0) / length, (y1 - y0) / length
            corners = [
                (x1, y1),
                (x1 - 8 * ux - 4 * uy, y1 - 8 * uy + 4 * ux),
                (x1 - 8 * ux + 4 * uy, y1 - 8 * uy - 4 * ux),
            ]
            self.parts.append(f'<path class="head" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in corners)} Z"/>')

    def circle(self, x: float, y: float, r: float, kind: str, label: str = "", style: str = "") -> None:
        """A node."""
        classes = f"{kind} {'dashed' if 'dashed' in style else ''}".strip()
        self.parts.append(f'<circle class="{classes}" cx="{x:g}" cy="{y:g}" r="{r:g}"/>')
        if label:
            self.text(x, y + 5, label, style.replace("dashed", "").strip(), "middle")

    def svg(self) -> str:
        """The file."""
        body = "\n".join(self.parts)
        return (
            f'<svg class="picture" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">\n<title>{escape(self.title)}</title>\n'
            f"<style>{_style()}</style>\n{body}\n</svg>\n"
        )
