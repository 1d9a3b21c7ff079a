"""Pictures for a service under load: good, broken and large ones."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from service_wire import Picture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from faults.broken import FORMATS, SUFFIX, bombs, damages, odd_ones, png


def good_pictures(arrays: list[Any]) -> list[Picture]:
    """Pictures, one of each format in turn, from pixels (uint8 [height, width, 3])."""
    made = []
    for number, pixels in enumerate(arrays):
        for name in FORMATS[number % len(FORMATS) :]:
            stream = io.BytesIO()
            try:
                Image.fromarray(pixels).save(stream, name)
            except (KeyError, OSError):  # this Pillow cannot write the format
                continue
            made.append(Picture(f"{number}.{SUFFIX.get(name, name)}", f"image/{name}", stream.getvalue()))
            break
    return made


def broken_pictures(pictures: list[Picture]) -> list[tuple[str, bytes]]:
    """Broken pictures: damaged ones of each format, small files that unpack to much, and odd ones."""
    found: list[tuple[str, bytes]] = []
    for name, one in {picture.kind: picture for picture in pictures}.items():
        found += [(f"{damage}.{name[6:]}", content) for damage, content in damages(name[6:], one.content)]
    return [*found, *bombs(), *odd_ones()]


def large_picture() -> bytes:
    """A JPEG of 12 megapixels, as phones take them."""
    stream = io.BytesIO()
    Image.effect_noise((400, 300), 60).convert("RGB").resize((4000, 3000)).save(stream, "jpeg", quality=60)
    return stream.getvalue()


def deep_picture(side: int = 5000) -> bytes:
    """A black PNG with 16 bits per channel: a small file, but decoding 25 megapixels takes 0.4 GB."""
    return bytes(png(side, side, depth=16, body=bytes((1 + 6 * side) * side)))
