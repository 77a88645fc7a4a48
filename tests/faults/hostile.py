"""Files that a stranger may send: pictures and zips that are odd, or made to harm."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# ---- pieces of formats ----


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, rows: bytes, *extra: bytes, depth=8, colour=0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zeros(count: int) -> bytes:
    """Compress so many zeros: a thousandth remains."""
    packer, block = zlib.compressobj(1), bytes(2**20)
    parts = [packer.compress(block) for _ in range(count // 2**20)]
    return b"".join([*parts, packer.compress(bytes(count % 2**20)), packer.flush()])


def tiff(tags: dict, content: bytes = b"", table: bytes = b"") -> bytes:
    """Lay out a TIFF: tag -> (type, count, value), where None stands for the content's place."""
    count = len(tags) + len(table) // 12
    start = 8 + 2 + 12 * count + 4
    rows = [
        struct.pack("<HHII", tag, kind, length, start if value is None else value)
        for tag, (kind, length, value) in sorted(tags.items())
    ]
    head = b"II*\0" + struct.pack("<IH", 8, count)
    return head + b"".join(rows) + table + bytes(4) + content


def grey_tiff(width: int, height: int) -> dict:
    """List the tags that a grey picture must have."""
    return {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, width * height),
    }  # fmt: skip


def encoded(image: Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


RED = encoded(Image.new("RGB", (20, 20), (200, 10, 10)), "PNG")

# ---- 50 000 x 50 000 pixels in a few bytes ----


def huge_pictures() -> dict[str, bytes]:
    """Make pictures that say they have 50 000 x 50 000 pixels, or as many as their format can."""
    side = 50_000
    jpeg = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    gif = bytearray(encoded(Image.new("P", (16, 16)), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    frame = bytearray(encoded(Image.new("P", (16, 16)), "GIF"))  # small, but not its first frame
    at = frame.index(b"\x2c", 13 + 3 * 2 ** ((frame[10] & 7) + 1)) + 5
    frame[at : at + 4] = struct.pack("<HH", side, side)
    bmp = bytearray(encoded(Image.new("RGB", (16, 16)), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    webp = bytearray(encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", 16382 | 16382 << 14)
    return {
        "huge.png": png(side, side, zeros(10**6)),
        "huge.jpg": bytes(jpeg),
        "huge.gif": bytes(gif),
        "frame.gif": bytes(frame),
        "huge.bmp": bytes(bmp),
        "huge.webp": bytes(webp),
        "huge.tif": tiff(grey_tiff(side, side)),
        "huge.ppm": b"P6 %d %d 255\n" % (side, side) + bytes(99),
    }


# ---- pictures that would keep a decoder busy, or fill the memory ----


def exhausting_pictures() -> dict[str, bytes]:
    """Make small files that cost minutes or gigabytes where nothing holds them back."""
    small = encoded(Image.new("RGB", (16, 16)), "JPEG")
    gif = encoded(Image.new("P", (16, 16)), "GIF")
    table = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    several = encoded(Image.new("RGB", (2000, 2000)), "JPEG", progressive=True)
    last = several[several.rindex(b"\xff\xda") : -2]
    numbers = struct.pack("<I", 8) * 2**20
    many = dict.fromkeys((273, 279), (4, 2**20, None)) | {278: (4, 1, 1)}
    same = b"".join(struct.pack("<HHII", 1000 + i, 7, 2**18, 8) for i in range(20_000))
    exif = b"II*\0" + struct.pack("<IH", 8, 6000) + same[: 12 * 6000] + bytes(2**18)
    side = 20_000
    tiles = {322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, None), 259: (3, 1, 8)}
    tile = zeros(side * side)
    return {
        "comments.jpg": small[:2] + b"\xff\xfe\0\2" * 2**20 + small[2:],
        "comments.gif": gif[:table]
        + b"!\xfe"
        + (b"\xff" + bytes(255)) * 2**14
        + b"\0"
        + gif[table:],
        "chunks.png": png(16, 16, zeros(16 * 17), chunk(b"abCd", b"") * 2**20),
        "scans.jpg": several[:-2] + last * 150 + several[-2:],
        "strips.tif": tiff(grey_tiff(16, 16) | many, numbers),
        "table.tif": tiff(grey_tiff(16, 16), bytes(2**18), same),
        "tile.tif": tiff(grey_tiff(16, 16) | tiles | {325: (4, 1, len(tile))}, tile),
        "exif.png": png(16, 16, zeros(16 * 17), chunk(b"eXIf", exif)),
        "numbers.ppm": b"P3 2000 2000 255\n" + b"0 " * 12_000_000,
        "runs.bmp": runs_of_one(2000),
    }


def runs_of_one(side: int) -> bytes:
    """Pack a BMP as badly as can be: Pillow unpacks each pixel in Python."""
    body = (b"\1\0" * side + b"\0\0") * side
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + bytes(1024) + body


# ---- ordinary pictures of every kind ----


def ordinary_pictures() -> dict[str, bytes]:
    """Make one picture of each format and mode that is read."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (40, 30, 4), np.uint8)
    rgb, rgba = Image.fromarray(values[..., :3]), Image.fromarray(values)
    grey, palette = rgb.convert("L"), rgb.quantize(16)
    sixteen = Image.fromarray(rng.integers(0, 65536, (40, 30), np.uint16))
    real = Image.fromarray(rng.random((40, 30), np.float32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    moving = {"save_all": True, "append_images": [palette.rotate(180)]}
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return {
        "rgb.png": encoded(rgb, "PNG"),
        "rgba.png": encoded(rgba, "PNG"),
        "la.png": encoded(rgba.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3),
        "sixteen.png": encoded(sixteen, "PNG"),
        "bits.png": encoded(rgb.convert("1"), "PNG"),
        "deep.png": png(30, 40, zlib.compress(rows), depth=16, colour=4),
        "moving.png": encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
        "rgb.jpg": encoded(rgb, "JPEG", exif=exif),
        "scans.jpg": encoded(rgb, "JPEG", progressive=True, icc_profile=bytes(500)),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(grey, "JPEG"),
        "two.jpg": encoded(rgb, "MPO", save_all=True, append_images=[rgb]),
        "palette.gif": encoded(palette, "GIF", comment=b"a comment"),
        "moving.gif": encoded(palette, "GIF", **moving),
        "lossy.webp": encoded(rgb, "WEBP"),
        "clear.webp": encoded(rgba, "WEBP", lossless=True, exif=exif),
        "moving.webp": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)]),
        "rgb.bmp": encoded(rgb, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "runs.bmp": runs_of_one(20),
        "rgb.tif": encoded(rgb, "TIFF", exif=exif),
        "lzw.tif": encoded(rgba, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(rgb, "TIFF", compression="jpeg"),
        "sixteen.tif": encoded(sixteen, "TIFF", compression="tiff_adobe_deflate"),
        "real.tif": encoded(real, "TIFF"),
        "bits.tif": encoded(rgb.convert("1"), "TIFF", compression="packbits"),
        "rgb.ppm": encoded(rgb, "PPM"),
        "text.pgm": b"P2 # grey\n20 20 15\n" + b"7 " * 400,
    }


# ---- zips ----


def zipped(path: Path, entries: dict[str, bytes], method=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo()
            entry.filename, entry.compress_type = name, method  # as it is, be it odd
            archive.writestr(entry, content)
    return path


def lying_zip(path: Path, name: str, content: bytes, size: int) -> Path:
    """Pack one entry, and write into both headers that it unpacks to another size."""
    raw = bytearray(zipped(path, {name: content}).read_bytes())
    raw[22:26] = struct.pack("<I", size)
    at = raw.rindex(b"PK\1\2") + 24
    raw[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(raw)
    return path


def crowded_zip(path: Path, content: bytes, count: int) -> Path:
    """Pack one picture, and list it under many names."""
    raw = zipped(path, {"0000000.png": content}).read_bytes()
    table, end = raw.index(b"PK\1\2"), raw.rindex(b"PK\5\6")
    rows = b"".join(raw[table:end].replace(b"0000000", b"%07d" % i) for i in range(count))
    record = struct.pack(
        "<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(rows), table
    )
    place = struct.pack("<IIQI", 0x07064B50, 0, table + len(rows), 1)
    last = b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)
    path.write_bytes(raw[:table] + rows + record + place + last)
    return path


# ---- reading them ----


def read(data, source: Path, **how):
    how = {"image_size": 16, "channels": "data", "batch_size": 1} | how
    return data.load_pictures(str(source), str(source.parent / "cache"), **how)


def only_the_good_one(found, *named):
    """Check that one picture was read, and that each of the others is named with its reason."""
    assert len(found.images) == 1
    lines = "\n".join(found.skipped)
    assert all(name in lines for name in named), lines
    assert all(line.isprintable() for line in found.skipped)
