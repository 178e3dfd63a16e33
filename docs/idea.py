# SPDX-License-Identifier: Apache-2.0
"""Draws docs/idea.svg: one generated user's prompt, row for row, as the packer makes it under three policies."""

from pathlib import Path

import numpy as np

import patchrec_fast as pf
from patchrec_fast import data

ITEMS, PER_LINE, CELL = 40, 100, 8
COLOURS = {
    "template": "#9aa0a6",
    "mark": "#d5d8dc",
    "text": "#4c78a8",
    "item patch": "#f58518",
    "session patch": "#54a24b",
}
POLICIES = {
    "Text()": pf.Text(),
    "ItemPatches(keep=5)": pf.ItemPatches(keep=5),
    "SessionPatches(group=5)": pf.SessionPatches(group=5),
}


def kinds(batch: pf.PackedBatch, prompt: pf.Prompt) -> list[str]:
    """What each row of a one-user batch is."""
    token_offsets, item_offsets = (x.long() for x in batch.offsets)
    rows = batch.max_seqlen
    found = []
    for row in range(rows):
        first, last = item_offsets[row], item_offsets[row + 1]
        tokens = batch.ids[token_offsets[first] : token_offsets[last]].tolist()
        if row < len(prompt.prefix) or row >= rows - len(prompt.suffix):
            found.append("template")
        elif tokens == [prompt.separator]:
            found.append("mark")
        elif last - first > 1:
            found.append("session patch")
        else:
            found.append("item patch" if len(tokens) > 1 else "text")
    return found


def main() -> None:
    sample = data.generate(users=50)
    tokenizer = data.sample_tokenizer(sample.titles.values())
    catalogue = pf.Catalogue.from_titles(sample.titles, tokenizer)
    prompt = pf.Prompt(
        tokenizer, system="You recommend movies.", instruction="I watched [HISTORY_SEQUENCE]. What next?"
    )
    longest = max((sample.items[a:b] for a, b in zip(sample.offsets, sample.offsets[1:], strict=False)), key=len)
    # A patch of a title of one token is that token: left out, not to look like text.
    history = longest[np.diff(catalogue.offsets)[catalogue.index(longest)] > 1]
    width, y, body = PER_LINE * CELL + 20, 30, []
    for name, policy in POLICIES.items():
        rows = kinds(pf.Packer(catalogue, prompt, policy, max_items=ITEMS).pack([history]), prompt)
        body.append(f'<text x="10" y="{y}">{name}: {len(rows)} rows</text>')
        for place, kind in enumerate(rows):
            x, line = 10 + place % PER_LINE * CELL, y + 8 + place // PER_LINE * (CELL + 4)
            body.append(f'<rect x="{x}" y="{line}" width="{CELL - 1}" height="{CELL + 2}" fill="{COLOURS[kind]}"/>')
        y += 8 + ((len(rows) - 1) // PER_LINE + 1) * (CELL + 4) + 26
    x = 10
    for kind, colour in COLOURS.items():
        body.append(f'<rect x="{x}" y="{y - 10}" width="10" height="10" fill="{colour}"/>')
        body.append(f'<text x="{x + 15}" y="{y}">{"separator" if kind == "mark" else kind}</text>')
        x += 40 + 8 * len("separator" if kind == "mark" else kind)
    style = "text{font:14px system-ui,sans-serif;fill:#24292f}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 14}" width="{width}">'
    background = f'<rect width="{width}" height="{y + 14}" fill="#ffffff"/>'
    Path(__file__).with_suffix(".svg").write_text(
        "\n".join([svg, f"<style>{style}</style>", background, *body, "</svg>\n"])
    )


if __name__ == "__main__":
    main()
