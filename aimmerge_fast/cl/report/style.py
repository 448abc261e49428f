"""How figures look: sizes, one colour per arm, one marker per kind of merge."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aimmerge_fast.cl.report.run import Group, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches; at DPI the width is twice that of a README's column.
WIDTH, DPI = 9.0, 180
GREY, LIGHT = "#6e7781", "#d0d7de"

# Okabe and Ito's palette, which all kinds of colour vision can tell apart, less its yellow.
_OWN = {"seqlora": "#000000", "replay": "#0072b2", "aim": "#d55e00", "mtl": GREY}
_OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_MARKERS = "osD^vP"

#: kind -> (marker, colour)
KINDS = {
    "merge_early": ("^", "#e69f00"),
    "merge_due": ("o", "#009e73"),
    "merge_deferred": ("s", "#56b4e9"),
    "merge_forced": ("X", "#cc79a7"),
    "merge_final": ("D", "#000000"),
}


@dataclasses.dataclass(frozen=True)
class Look:
    """Of one arm, in all figures."""

    colour: str
    dashes: Any
    marker: str


def looks(run: Run) -> dict[str, Look]:
    """Look by the group's name: the main methods have colours of their own, others take turns."""
    found: dict[str, Look] = {}
    free = set(_OWN)
    turn = 0
    for place, group in enumerate(run.groups):
        if group.method in free:
            free.remove(group.method)
            dashes = _DASHES[1] if group.method == "mtl" else "-"
            found[group.name] = Look(_OWN[group.method], dashes, _MARKERS[place % len(_MARKERS)])
            continue
        dashes = _DASHES[turn // len(_OTHERS) % len(_DASHES)]
        colour = _OTHERS[turn % len(_OTHERS)]
        found[group.name] = Look(colour, dashes, _MARKERS[place % len(_MARKERS)])
        turn += 1
    return found


def line_style(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": look.dashes}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many inches, without any state of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def columns_for(count: int, most: int) -> int:
    """Panels to a row: at most so many, or one less where that leaves fewer places empty."""
    if count <= most:
        return count
    return min((most, max(2, most - 1)), key=lambda columns: -count % columns)


def grid(count: int, columns: int, panel: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels, so many to a row, each ``panel`` inches high."""
    rows = -(-count // columns)
    figure = new_figure(rows * panel + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    for one in axes[:count]:
        plain(one)
    return figure, axes[:count]


def plain(axes: Axes) -> None:
    """No box, a light grid under the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY)
    axes.grid(axis="y", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)


def titled(axes: Axes, text: str) -> None:
    axes.set_title(label(text, 40), fontsize=9, loc="left")


def named(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Names and units of the axes."""
    if x is not None:
        axes.set_xlabel(x, fontsize=9)
    if y is not None:
        axes.set_ylabel(y, fontsize=9)


def legend(figure: Figure, handles: Sequence[Any], most: int = 4) -> None:
    """One legend under all panels, in up to so many columns: those that leave the fewest gaps."""
    if handles:
        columns = min(range(most, 1, -1), key=lambda columns: -len(handles) % columns)
        figure.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=len(handles) if len(handles) <= most else columns,
            fontsize=8,
            frameon=False,
        )


def line_handle(look: Look, name: str, marker: bool = False) -> Any:
    from matplotlib.lines import Line2D

    style = line_style(look) | ({"marker": look.marker, "markersize": 4} if marker else {})
    return Line2D([], [], label=label(name, 40), **style)


def label(text: str, most: int = 60) -> str:
    """Names as matplotlib shows them: no mathematics between dollars, on one line, not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    short = line if len(line) <= most else f"{line[: most - 1]}…"
    return short.replace("$", r"\$")


def group_label(group: Group, most: int = 40) -> str:
    return label(group.label, most)


def to_png(figure: Figure) -> bytes:
    """The figure's PNG; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # names of tasks may be in scripts that the font lacks; they are whole in the tables
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
