"""SVG: a subnetwork layer by layer, one column for each field with one value per layer."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from search_spaces.dimensions import DIMENSIONS, PER_SUBNET

if TYPE_CHECKING:
    from search_spaces.subnet import SubnetConfig

ROW, BAR, GAP, LABEL = 20, 120, 14, 60
"""Height of a layer, width of a bar, gap between bars, width of the layers' names; in pixels."""


def svg(subnet: SubnetConfig) -> str:
    """Bars of each kept layer, relative to the largest value of the field; a value of 0 is a skipped block.

    A dimension of the subnetwork that changes something adds a row.
    """
    fields = {name: values for name, values in subnet.to_dict().items() if isinstance(values, list)}
    layers, changed = fields.pop("layers"), [name for name in PER_SUBNET if subnet.changes(name)]
    rows = len(layers) + 1 + len(changed)
    width, height = LABEL + len(fields) * (BAR + GAP), ROW * rows + 6
    cells = [_text(0, row + 1, f"layer {layer}", "0.65") for row, layer in enumerate(layers)]
    for column, (name, values) in enumerate(fields.items()):
        x = LABEL + column * (BAR + GAP)
        cells.append(_text(x, 0, name, "0.65"))
        cells += [_cell(x, row + 1, value, values) for row, value in enumerate(values)]
    for row, name in enumerate(changed, 1 + len(layers)):
        title, text = DIMENSIONS[name].picture_row(getattr(subnet, name))
        cells += [
            _text(0, row, title, "0.65"),
            _cell(LABEL, row, getattr(subnet, name), [DIMENSIONS[name].default(vars(subnet))], text),
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="currentColor">{"".join(cells)}</svg>'
    )


def _cell(x: int, row: int, value: Any, values: list[Any], text: str = "") -> str:
    numbers = [v for v in values if isinstance(v, int | float)]
    share = value / max(numbers) if isinstance(value, int | float) and max(numbers) > 0 else 0.0
    y = row * ROW + 2
    frame = f'<rect x="{x}" y="{y}" width="{BAR}" height="{ROW - 4}" rx="3" fill="#8894a0" opacity="0.18"/>'
    bar = f'<rect x="{x}" y="{y}" width="{share * BAR:.1f}" height="{ROW - 4}" rx="3" fill="#2463c9" opacity="0.45"/>'
    return frame + bar + _text(x + 5, row, text or ("skipped" if value == 0 else str(value)), "1")


def _text(x: int, row: int, text: str, opacity: str) -> str:
    return f'<text x="{x}" y="{row * ROW + 14}" opacity="{opacity}">{escape(text)}</text>'
