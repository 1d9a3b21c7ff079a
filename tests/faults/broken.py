"""The corpus of broken pictures: each format that Pillow can write, damaged in many ways, and handmade files."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image, PngImagePlugin

from helpers import noise

FORMATS = ["png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm", "tga", "ico", "jpeg2000", "avif"]
SUFFIX = {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2"}


def corpus() -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files, without :data:`LARGEST`. A few of them are readable."""
    for name in FORMATS:
        whole = encoded(name)
        if whole is not None:
            suffix = SUFFIX.get(name, name)
            for damage, content in damages(name, whole):
                yield f"{name}-{damage}.{suffix}", content
    yield from bombs()
    yield from odd_ones()


def encoded(name: str) -> bytes | None:
    stream = io.BytesIO()
    try:
        Image.fromarray(noise(0, 24, 24)).save(stream, name)
    except (KeyError, OSError):  # this Pillow cannot write the format
        return None
    return stream.getvalue()


def damages(name: str, whole: bytes) -> Iterator[tuple[str, bytes]]:
    draw = random.Random(name)
    for part in (1, 5, 10, 25, 40, 50, 60, 75, 90, 97):
        yield f"truncated-{part}", whole[: max(1, len(whole) * part // 100)]
    yield "one-byte-short", whole[:-1]
    yield "zero-byte", b""
    yield "one-byte", whole[:1]
    yield "all-zeros", bytes(len(whole))
    yield "reversed", whole[::-1]
    yield "shifted", whole[1:]
    yield "led-by-rubbish", b"rubbish" + whole
    yield "rubbish-with-its-beginning", whole[:16] + draw.randbytes(len(whole))
    yield "zeros-after-its-beginning", whole[:64] + bytes(len(whole))
    yield "doubled", whole + whole
    for number in range(8):
        flipped = bytearray(whole)
        for _ in range(1 + number):
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        yield f"{number + 1}-bits-flipped", bytes(flipped)
    for number in range(3):  # in the header, where sizes are
        flipped = bytearray(whole)
        for _ in range(4):
            flipped[draw.randrange(min(64, len(whole)))] = draw.randrange(256)
        yield f"header-overwritten-{number}", bytes(flipped)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, body: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    compressed = zlib.compress(body, 9)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", compressed) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def texts(count: int, depth: int = 8) -> bytes:
    """A PNG of one pixel with so many texts of a million characters each, which take about a kilobyte."""
    whole, text = png(1, 1, depth=depth, body=bytes(1 + 3 * depth // 8)), zlib.compress(b"x" * 1_000_000, 9)
    chunks = [png_chunk(b"zTXt", f"text {number}\0\0".encode() + text) for number in range(count)]
    return whole[:33] + b"".join(chunks) + whole[33:]  # after the header


def scans(count: int) -> bytes:
    """A progressive JPEG with so many scans: the first of them is repeated."""
    whole = saved(Image.fromarray(noise(0, 24, 24)), "jpeg", progressive=True)
    start = whole.index(b"\xff\xda")
    end = whole.index(b"\xff\xc4", start)  # the Huffman table of the next scan
    more = count - whole.count(b"\xff\xda")
    return whole[:end] + whole[start:end] * more + whole[end:]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files. Most only declare huge pictures."""
    for side in (10_000, 20_000, 65_535, 2**31 - 1):
        yield f"bomb-declared-{side}.png", png(side, side)
    yield "bomb-declared-0.png", png(0, 0)
    yield "bomb-wide.png", png(2**31 - 1, 1)
    yield "bomb-high.png", png(1, 2**31 - 1)
    yield "bomb.ppm", b"P6 99999 99999 255\n" + bytes(100)
    yield "bomb-comment.ppm", b"P6 #" + b"x" * 1_000_000
    yield "bomb-digits.ppm", b"P6 " + b"9" * 1_000_000 + b" 1 255\n"
    yield (
        "bomb.gif",
        b"GIF89a"
        + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0)
        + bytes(6)
        + b",\0\0\0\0"
        + (struct.pack("<HHB", 65_535, 65_535, 0) + b"\x02\x01\x00\x00;"),
    )
    yield (
        "bomb.bmp",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 99_999, 99_999, 1, 24, 0, 0, 1, 1, 0, 0),
    )
    yield (
        "bomb-negative.bmp",
        b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, -5, -2_000_000_000, 1, 24, 0, 0, 1, 1, 0, 0),
    )
    yield (
        "bomb.tga",
        struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65_535, 65_535, 24, 0) + b"\xff\0\0\0" * 50,
    )
    yield "bomb.ico", struct.pack("<HHH", 0, 1, 60_000) + bytes(100)
    whole = bytearray(saved(Image.new("RGB", (8, 8)), "jpeg"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    yield "bomb.jpg", bytes(whole)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 60_000_000, zip=True)
    yield "bomb-text.png", saved(Image.new("RGB", (8, 8)), "png", pnginfo=text)
    yield "bomb-scans.jpg", scans(2_000)
    yield "bomb-profile.png", saved(Image.new("RGB", (8, 8)), "png", icc_profile=bytes(60_000_000))


def largest(mode: str, kind: str, **options: object) -> bytes:
    return saved(Image.new(mode, (8000, 7999)), kind, **options)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# Pictures just below the size limit in small files. Each takes up to two seconds to write, so it is a function.
LARGEST: dict[str, Callable[[], bytes]] = {
    "largest-rgb.png": lambda: largest("RGB", "png"),
    "largest-rgb.jpg": lambda: largest("RGB", "jpeg"),
    "largest-rgba.png": lambda: largest("RGBA", "png"),
    "largest-palette.png": lambda: largest("P", "png", transparency=0),
    "largest-grey16.png": lambda: largest("I;16", "png"),
    "largest-float.tif": lambda: largest("F", "tiff", compression="tiff_deflate"),
    "largest-1bit.tif": lambda: largest("1", "tiff", compression="group4"),
    "largest-turned.jpg": lambda: largest("RGB", "jpeg", exif=turned()),
    "largest-cmyk.jpg": lambda: largest("CMYK", "jpeg"),
}


def odd_ones() -> Iterator[tuple[str, bytes]]:
    """Unusual files, which must be read or refused with a reason."""
    picture = Image.fromarray(noise(1, 24, 24))
    yield "one-pixel.png", saved(Image.new("RGB", (1, 1)), "png")
    yield "one-row.png", saved(Image.new("RGB", (60_000, 1)), "png")
    yield "one-column.png", saved(Image.new("RGB", (1, 60_000)), "png")
    yield "one-bit.png", saved(Image.new("1", (24, 24)), "png")
    frames = [Image.new("P", (24, 24), n % 256) for n in range(500)]
    yield "animated.gif", saved(frames[0], "gif", save_all=True, append_images=frames[1:])
    yield "animated.png", saved(frames[0], "png", save_all=True, append_images=frames[1:])
    yield "animated.webp", saved(frames[0].convert("RGB"), "webp", save_all=True, append_images=frames[1:50])
    yield "pages.tif", saved(picture, "tiff", save_all=True, append_images=[picture] * 20)
    for true, false in (("png", "jpg"), ("jpeg", "png"), ("gif", "bmp"), ("webp", "tif"), ("bmp", "webp")):
        yield f"is-{true}-says.{false}", encoded(true) or b""
    yield "is-text.png", b"not a picture\n" * 50
    yield "is-html.jpg", b"<!doctype html><title>404</title>"
    yield "is-svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    yield "is-zip.png", b"PK\x03\x04" + bytes(200)
    yield "is-pdf.jpg", b"%PDF-1.4\n" + bytes(200)
    yield "is-executable.png", b"\x7fELF" + bytes(200)
    yield "is-postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    yield "é ü ñ.png", b"x"
    yield "图片.png", b"x"
    yield "😀.png", b"x"
    yield "צילום.jpg", b"x"
    yield "with\nnewline.png", b"x"
    yield "with\ttab and \x1b[31mcolour.png", b"x"
    yield "-rf.png", b"x"
    yield "%s{0}[bold].png", b"x"
    yield "x" * 251 + ".png", b"x"
    yield "図" * 83 + ".png", b"x"
    exif = Image.Exif()
    exif[0x0112] = 77
    yield "exif-nonsense.jpg", saved(picture, "jpeg", exif=exif)
    yield "exif-rubbish.jpg", saved(picture, "jpeg", exif=b"Exif\0\0" + bytes(range(256)) * 20)
    yield "profile-rubbish.jpg", saved(picture, "jpeg", icc_profile=b"rubbish" * 100)
    yield "cmyk.jpg", saved(picture.convert("CMYK"), "jpeg")
    yield "lab.tif", saved(picture.convert("LAB"), "tiff")
    yield "nan.tif", saved(Image.fromarray(noise(0, 8, 8)[..., 0].astype("float32") * float("nan")), "tiff")
