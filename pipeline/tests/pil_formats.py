"""Writes odd images of all formats into a folder, and what PIL makes of each.

usage: pil_formats.py FOLDER [-- FILE ...]

Beside NAME there is NAME.rgb (width and height as 4 bytes each, little endian, then RGB) where PIL
reads it upright, and NAME.grey likewise with LOAD_TRUNCATED_IMAGES. With FILEs nothing is made but
file-N.rgb and file-N.grey of the one at position N.
"""

import io
import os
import random
import struct
import sys
import warnings
import zlib

import PIL
from PIL import Image, ImageFile, ImageOps

if int(PIL.__version__.split(".")[0]) > 12:
    sys.exit("Pillow " + PIL.__version__ + " is not the reference; run make test")
warnings.simplefilter("ignore")
folder, files = sys.argv[1], sys.argv[3:]
random.seed(7)


def reference(name, data):
    for ending, lenient in (("rgb", False), ("grey", True)):
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        except Exception:
            continue
        with open(os.path.join(folder, name + "." + ending), "wb") as out:
            out.write(struct.pack("<II", *image.size) + image.tobytes())
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def put(name, data):
    assert not os.path.exists(os.path.join(folder, name)), name
    with open(os.path.join(folder, name), "wb") as out:
        out.write(data)
    reference(name, data)


def save(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(mode, width, height):
    """Smooth and noisy parts, coloured, not square."""
    image = Image.new("RGB", (width, height))
    image.putdata(
        [
            (x * 255 // width, y * 255 // height, random.randrange(256) if x > width // 2 else 40)
            for y in range(height)
            for x in range(width)
        ]
    )
    if mode == "I;16":
        wide = Image.new("I;16", (width, height))
        wide.putdata([random.randrange(65536) for _ in range(width * height)])
        return wide
    if mode == "RGBA" or mode == "LA":
        image.putalpha(Image.effect_noise((width, height), 80))
        return image.convert(mode)
    return image.convert(mode)


# Orientation.

DIRECTORY = {"<": b"II*\0", ">": b"MM\0*"}
XMP_START = b"http://ns.adobe.com/xap/1.0/\0"


def exif(value, order=">", kind=3, count=1, extra=b""):
    packed = {1: "B3x", 3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i", 11: "f", 2: "B3x", 7: "B3x"}[kind]
    entry = struct.pack(order + "HHI" + packed, 0x112, kind, count, value)
    entries = 1 + len(extra) // 12
    return DIRECTORY[order] + struct.pack(order + "IH", 8, entries) + entry + extra + bytes(4)


def rational(value):
    return b"MM\0*" + struct.pack(">IHHHIIIII", 8, 1, 0x112, 5, 1, 26, 0, value * 3, 3)


def attribute(value):
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % value


def element(value):
    return b"<x:xmpmeta><tiff:Orientation>%d</tiff:Orientation></x:xmpmeta>" % value


def raw_profile(block):
    text = block.hex()
    lines = [text[at : at + 72] for at in range(0, len(text), 72)]
    return ("\nexif\n%8d\n" % len(block) + "\n".join(lines) + "\n").encode()


NO_ORIENTATION = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x100, 3, 1, 5, 0, 0)


def blocks(value):
    """(what, EXIF, XMP) that ask for an orientation, or seem to."""
    yield "short", exif(value), None
    yield "little", exif(value, "<"), None
    yield "long", exif(value, kind=4), None
    yield "long-little", exif(value, "<", kind=4), None
    yield "signed", exif(value, kind=8), None
    yield "signed-long", exif(value, "<", kind=9), None
    yield "signed-byte", exif(value, kind=6), None
    yield "float", exif(value, kind=11), None
    yield "byte", exif(value, kind=1), None
    yield "undefined", exif(value, kind=7), None
    yield "rational", rational(value), None
    yield "prefix", b"Exif\0\0" + exif(value), None
    yield "prefixes", b"Exif\0\0" * 2 + exif(value, "<"), None
    yield "none-counted", exif(value, count=0), attribute(9 - value)
    yield "attribute", None, attribute(value)
    yield "element", None, element(value)
    yield "quotes", None, attribute(value).replace(b'"', b"'")
    yield "spaced", None, b"<tiff:Orientation> %d</tiff:Orientation>" % value
    yield "two-digits", None, attribute(value * 10 + 1)
    yield "both", exif(value), attribute(9 - value)
    yield "exif-upright", exif(1), attribute(value)
    yield "exif-beyond", exif(9), attribute(value)
    yield "exif-without", NO_ORIENTATION, element(value)
    yield "twice", exif(1, extra=struct.pack(">HHIHxx", 0x112, 3, 1, value)), None
    yield "cut", exif(value)[:15], element(value)


def segment(data):
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def with_segments(jpeg, *segments):
    return jpeg[:2] + b"".join(map(segment, segments)) + jpeg[2:]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png, *chunks, after=False):
    at = len(png) - 12 if after else 33
    return png[:at] + b"".join(chunk(*one) for one in chunks) + png[at:]


def text(keyword, value, kind="tEXt"):
    if kind == "tEXt":
        return b"tEXt", keyword + b"\0" + value
    if kind == "zTXt":
        return b"zTXt", keyword + b"\0\0" + zlib.compress(value)
    if kind == "iTXt":
        return b"iTXt", keyword + b"\0\0\0en\0\0" + value
    return b"iTXt", keyword + b"\0\1\0en\0x\0" + zlib.compress(value)


def riff(*chunks):
    body = b"".join(k + struct.pack("<I", len(d)) + d + b"\0" * (len(d) % 2) for k, d in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def with_riff_chunks(webp, size, block, xmp, flags=None):
    kept = 12, 20 + struct.unpack("<I", webp[16:20])[0]
    if flags is None:
        flags = (8 if block else 0) | (4 if xmp else 0)
    extended = struct.pack("<I", flags) + struct.pack("<I", size[0] - 1)[:3] + struct.pack("<I", size[1] - 1)[:3]
    picture = webp[kept[0] : kept[0] + 4], webp[20 : kept[1]]
    chunks = [(b"VP8X", extended), picture]
    if block:
        chunks.append((b"EXIF", block))
    if xmp:
        chunks.append((b"XMP ", xmp))
    return riff(*chunks)


def orientations():
    picture = noise("RGB", 13, 7)
    jpeg, png = save(picture, "JPEG", quality=97, subsampling=0), save(picture, "PNG")
    lossy, lossless = save(picture, "WEBP", quality=90), save(picture, "WEBP", lossless=True)
    for value in range(2, 9):
        for what, block, xmp in blocks(value):
            name = "orient-%d-%s" % (value, what)
            segments = ([b"Exif\0\0" + block] if block else []) + ([XMP_START + xmp] if xmp else [])
            put(name + ".jpg", with_segments(jpeg, *segments))
            put(name + "-turned.jpg", with_segments(jpeg, *segments[::-1]))
            chunks = [(b"eXIf", block)] if block else []
            for kind in ("iTXt", "compressed") if xmp else ("",):
                texts = [text(b"XML:com.adobe.xmp", xmp, kind)] if xmp else []
                put(name + kind + ".png", with_chunks(png, *chunks, *texts))
                put(name + kind + "-after.png", with_chunks(png, *chunks, *texts, after=True))
            if block:
                for kind in ("tEXt", "zTXt", "iTXt", "compressed"):
                    profile = text(b"Raw profile type exif", raw_profile(b"Exif\0\0" + block), kind)
                    put(name + "-raw-" + kind + ".png", with_chunks(png, profile))
                put(name + "-raw-after.png", with_chunks(png, profile, after=True))
                app1 = text(b"Raw profile type APP1", raw_profile(b"Exif\0\0" + block), "zTXt")
                put(name + "-app1.png", with_chunks(png, app1))
                put(name + "-raw-other.png", with_chunks(png, profile, (b"eXIf", exif(1))))
            for which, webp in (("", lossy), ("-lossless", lossless)):
                put(name + which + ".webp", with_riff_chunks(webp, picture.size, block, xmp))
            put(name + "-flags.webp", with_riff_chunks(lossy, picture.size, block, xmp, flags=0))
        block = exif(value)
        put("orient-%d-split.jpg" % value, with_segments(jpeg, b"Exif\0\0" + block[:20], b"Exif\0\0" + block[20:]))
        put("orient-%d-two.jpg" % value, with_segments(jpeg, b"Exif\0\0" + exif(1), b"Exif\0\0" + block))
        packets = XMP_START + element(value), XMP_START + b"<x:xmpmeta/>"
        put("orient-%d-packets.jpg" % value, with_segments(jpeg, *packets))
        put("orient-%d-packets-turned.jpg" % value, with_segments(jpeg, *packets[::-1]))
        twice = [(b"eXIf", exif(1)), (b"eXIf", exif(value))]
        put("orient-%d-two.png" % value, with_chunks(png, *twice))
        put("orient-%d-profile-text.png" % value, with_chunks(png, text(b"XML:com.adobe.xmp", attribute(value))))
        put("orient-%d-tag.tif" % value, save(picture, "TIFF", tiffinfo={274: value}))
        put("orient-%d-xmp.tif" % value, save(picture, "TIFF", tiffinfo={700: attribute(value)}))
        put("orient-%d-both.tif" % value, save(picture, "TIFF", tiffinfo={274: value, 700: attribute(9 - value)}))
        put("orient-%d-lzw.tif" % value, save(picture, "TIFF", tiffinfo={274: value}, compression="tiff_lzw"))


# TIFF.


def tiff(tags, chunks, order="<", big=False):
    """Tags as (kind, values) by number; offsets and lengths of chunks are tags[0] and tags[1]."""
    tags = dict(tags)
    offsets_tag, lengths_tag = tags.pop(0), tags.pop(1)
    start = 16 if big else 8
    offsets = []
    body = b""
    for data in chunks:
        offsets.append(start + len(body))
        body += data + b"\0" * (len(data) % 2)
    tags[offsets_tag], tags[lengths_tag] = (4, offsets), (4, [len(data) for data in chunks])
    sizes = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}
    inline, wide = (8, "Q") if big else (4, "I")
    entries, after = b"", b""
    begin = start + len(body)
    behind = begin + (8 + 20 * len(tags) + 8 if big else 2 + 12 * len(tags) + 4)
    for number in sorted(tags):
        kind, values = tags[number]
        packed = struct.pack(order + sizes[kind] * len(values), *values)
        entries += struct.pack(order + "HH" + wide, number, kind, len(values))
        if len(packed) <= inline:
            entries += packed.ljust(inline, b"\0")
        else:
            entries += struct.pack(order + wide, behind + len(after))
            after += packed + b"\0" * (len(packed) % 2)
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(order + "HHHQ", 43, 8, 0, begin)
        directory = struct.pack(order + "Q", len(tags)) + entries + struct.pack(order + "Q", 0)
    else:
        head = mark + struct.pack(order + "HI", 42, begin)
        directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    return head + body + directory + after


def plain(width, height, bits, photometric, more={}, order="<", big=False, compress=None, rows=None, planar=False, cut=0):
    """A TIFF of random samples in strips."""
    samples = len(bits)
    planes = samples if planar else 1
    row_bits = width * (bits[0] if planar else sum(bits))
    row = (row_bits + 7) // 8
    rows = rows or height
    chunks = []
    for plane in range(planes):
        for top in range(0, height, rows):
            data = bytes(random.randrange(256) for _ in range(row * min(rows, height - top)))
            chunks.append(compress(data) if compress else data)
    tags = {0: 273, 1: 279, 256: (3, [width]), 257: (3, [height]), 258: (3, list(bits)), 262: (3, [photometric])}
    tags.update({277: (3, [samples]), 278: (3, [rows]), 284: (3, [2 if planar else 1])})
    if compress:
        tags[259] = (3, [8])
    tags.update(more)
    data = tiff(tags, chunks, order, big)
    return data[: len(data) - cut]


def tiled(width, height, tile, samples, planar, order, compress, predictor=1, bits=8):
    across, down = -(-width // tile[0]), -(-height // tile[1])
    planes = samples if planar else 1
    row = tile[0] * (1 if planar else samples) * bits // 8
    chunks = [
        bytes(random.randrange(256) for _ in range(row * tile[1])) for _ in range(across * down * planes)
    ]
    tags = {0: 324, 1: 325, 256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * samples), 277: (3, [samples])}
    tags.update({262: (3, [2 if samples == 3 else 1]), 284: (3, [2 if planar else 1]), 322: (3, [tile[0]]), 323: (3, [tile[1]])})
    if compress:
        tags[259], tags[317] = (3, [8]), (3, [predictor])
        chunks = [zlib.compress(data) for data in chunks]
    return tiff(tags, chunks, order)


def tiffs():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "LAB", "F", "I"):
        picture = noise("RGB" if mode in ("LAB", "F", "I") else mode, 37, 23)
        if mode == "LAB":
            picture = Image.frombytes("LAB", picture.size, picture.tobytes())
        elif mode in ("F", "I"):
            picture = picture.convert("L").convert(mode)
        compressions = [None, "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "zstd"]
        if mode in ("L", "RGB", "CMYK"):
            compressions.append("jpeg")
        if mode == "1":
            compressions += ["group3", "group4", "tiff_ccitt"]
        # Other combinations can corrupt PIL's memory as it writes them.
        for compression in compressions:
            variants = {"": {}, "-strips": {278: 8}}
            if mode in ("L", "LA", "RGB", "RGBA", "I;16") and compression in ("tiff_lzw", "tiff_adobe_deflate", "zstd"):
                variants["-predicted"] = {317: 2}
            if compression == "group4":
                variants["-reversed"] = {266: 2}
            for what, info in variants.items():
                try:
                    data = save(picture, "TIFF", compression=compression, tiffinfo=info)
                except (OSError, ValueError, KeyError, RuntimeError):
                    continue
                put("tiff-%s-%s%s.tif" % (mode.replace(";", ""), compression, what), data)
    for width, height in ((1, 1), (8, 3), (65, 40), (2600, 9)):
        for compression in ("group3", "group4", "tiff_ccitt"):
            page = Image.new("1", (width, height))
            page.putdata([255 * (random.random() < 0.5 + 0.4 * ((x // 40 + y) % 2)) for y in range(height) for x in range(width)])
            for what, info in (("", {}), ("-2d", {292: 1}), ("-filled", {292: 5})):
                put("fax-%dx%d-%s%s.tif" % (width, height, compression, what), save(page, "TIFF", compression=compression, tiffinfo=info))
    map_of = lambda bits: (3, [random.randrange(65536) for _ in range(3 << bits)])
    for order in "<>":
        end = "le" if order == "<" else "be"
        for bits in (1, 2, 4, 8):
            for photometric in (0, 1):
                put("raw-%s-grey%d-%d.tif" % (end, bits, photometric), plain(37, 11, [bits], photometric, order=order))
            put("raw-%s-palette%d.tif" % (end, bits), plain(37, 11, [bits], 3, {320: map_of(bits)}, order, rows=4))
            put("raw-%s-reversed%d.tif" % (end, bits), plain(37, 11, [bits], 1, {266: (3, [2])}, order))
        put("raw-%s-palette-alpha.tif" % end, plain(37, 11, [8, 8], 3, {320: map_of(8), 338: (3, [2])}, order))
        put("raw-%s-palette-extra.tif" % end, plain(37, 11, [8, 8], 3, {320: map_of(8), 338: (3, [0])}, order))
        put("raw-%s-grey-alpha.tif" % end, plain(37, 11, [8, 8], 1, {338: (3, [2])}, order))
        put("raw-%s-signed.tif" % end, plain(37, 11, [8], 1, {339: (3, [2])}, order))
        for bits in (8, 16):
            for planar in (False, True):
                for compress in (None, zlib.compress):
                    what = "%s-%d-%s-%s" % (end, bits, "planar" if planar else "chunky", "zip" if compress else "raw")
                    options = {"order": order, "planar": planar, "compress": compress, "rows": 4}
                    put("raw-rgb-%s.tif" % what, plain(37, 11, [bits] * 3, 2, **options))
                    put("raw-rgb-predicted-%s.tif" % what, plain(37, 11, [bits] * 3, 2, {317: (3, [2 if compress else 1])}, **options))
                    put("raw-cmyk-%s.tif" % what, plain(37, 11, [bits] * 4, 5, {332: (3, [1])}, **options))
                    for extra in (0, 1, 2):
                        put("raw-rgb-extra%d-%s.tif" % (extra, what), plain(37, 11, [bits] * 4, 2, {338: (3, [extra])}, **options))
        put("raw-%s-rgb-noextra.tif" % end, plain(37, 11, [8] * 4, 2, order=order))
        put("raw-%s-six.tif" % end, plain(37, 11, [8] * 6, 2, {338: (3, [2, 0, 0])}, order))
        put("raw-%s-big.tif" % end, plain(37, 11, [8] * 3, 2, order=order, big=True, rows=3))
        put("raw-%s-big-zip.tif" % end, plain(37, 11, [8] * 3, 2, order=order, big=True, rows=3, compress=zlib.compress))
        for planar in (False, True):
            for compress in (False, True):
                for samples, size in ((3, (70, 40)), (1, (33, 50)), (3, (16, 16)), (3, (5, 3))):
                    what = "%s-%d-%dx%d-%s-%s" % ((end, samples) + size + ("planar" if planar else "chunky", "zip" if compress else "raw"))
                    put("tiled-%s.tif" % what, tiled(*size, (32, 16), samples, planar, order, compress))
                    if compress:
                        put("tiled-predicted-%s.tif" % what, tiled(*size, (32, 16), samples, planar, order, compress, 2))
                        put("tiled-wide-%s.tif" % what, tiled(*size, (16, 32), samples, planar, order, compress, 2, 16))
    for name, bits, photometric, more in (
        ("float", [32], 1, {339: (3, [3])}),
        ("long", [32], 1, {}),
        ("twelve", [12], 1, {}),
        ("lab", [8] * 3, 8, {}),
        ("icclab", [8] * 3, 9, {}),
        ("mask", [1], 4, {}),
        ("cfa", [8], 32803, {}),
        ("mixed", [5, 6, 5], 2, {}),
        ("signed16", [16], 1, {339: (3, [2])}),
        ("lerc", [8] * 3, 2, {259: (3, [34887])}),
        ("lzma", [8] * 3, 2, {259: (3, [34925])}),
        ("webp", [8] * 3, 2, {259: (3, [50001])}),
        ("old-jpeg", [8] * 3, 6, {259: (3, [6])}),
    ):
        put("kind-%s.tif" % name, plain(20, 10, bits, photometric, more))


# PNG.


def png_raw(width, height, bits, colour, interlaced=0, more=(), level=6):
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x, y, dx, dy in passes:
        columns, rows = len(range(x, width, dx)), len(range(y, height, dy))
        if columns:
            for _ in range(rows):
                length = (columns * samples * bits + 7) // 8
                raw += bytes([random.randrange(5)]) + bytes(random.randrange(256) for _ in range(length))
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", head), *more]
    data = zlib.compress(raw, level)
    middle = len(data) // 2
    chunks += [(b"IDAT", data[:middle]), (b"IDAT", b""), (b"IDAT", data[middle:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def pngs():
    for colour, depths in ((0, (1, 2, 4, 8)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))):
        for bits in depths:
            for interlaced in (0, 1):
                for width, height in ((1, 1), (3, 2), (37, 11)):
                    more = [(b"PLTE", bytes(random.randrange(256) for _ in range(3 * min(200, 1 << bits))))] if colour == 3 else []
                    name = "png-%d-%d-%d-%dx%d.png" % (colour, bits, interlaced, width, height)
                    put(name, png_raw(width, height, bits, colour, interlaced, more))
    put("png-short-palette.png", png_raw(37, 11, 8, 3, 0, [(b"PLTE", bytes(range(60)))]))
    put("png-transparent.png", png_raw(37, 11, 8, 3, 0, [(b"PLTE", bytes(range(30)) * 25), (b"tRNS", bytes(range(200)))]))
    put("png-animated.png", save(noise("RGB", 19, 12), "PNG", save_all=True, append_images=[noise("RGB", 19, 12)]))
    for interlaced in (0, 1):
        # Stored, so that a cut is at a known pixel.
        for level in (0, 6):
            whole = png_raw(37, 11, 8, 2, interlaced, level=level)
            put("png-whole-%d-%d.png" % (interlaced, level), whole)
            cuts = list(range(1, 60)) + list(range(60, len(whole) - 60, 97))
            for cut in cuts:
                put("png-cut-%d-%d-%04d.png" % (interlaced, level, cut), whole[: len(whole) - cut])


# GIF.


def codes(indices, size=8, end=True):
    """Literal codes, never long enough for another code size."""
    bits, length = 0, 0

    def emit(code):
        nonlocal bits, length
        bits |= code << length
        length += size + 1

    for number, index in enumerate(indices):
        if number % ((1 << size) - 4) == 0:
            emit(1 << size)
        emit(index)
    if end:
        emit((1 << size) + 1)
    data = bits.to_bytes((length + 7) // 8, "little")
    blocks = [data[at : at + 255] for at in range(0, len(data), 255)]
    return bytes([size]) + b"".join(bytes([len(block)]) + block for block in blocks)


def colours(palette):
    return 0x80 | ((len(palette) // 3 - 1).bit_length() - 1) if palette else 0


def gif(screen, frame, palette=None, local=None, transparent=None, interlaced=0, end=True, last=b"\0;", count=None, before=b""):
    x, y, width, height = frame
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, colours(palette), 0, 0) + (palette or b"")
    if transparent is not None:
        data += b"!\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    data += before + b"," + struct.pack("<HHHHB", x, y, width, height, colours(local) | interlaced * 0x40) + (local or b"")
    total = width * height if count is None else count
    return data + codes([random.randrange(256) for _ in range(total)], end=end) + last


def gifs():
    palette = bytes(random.randrange(256) for _ in range(3 * 256))
    short = bytes(random.randrange(256) for _ in range(3 * 64))
    whole = (0, 0, 23, 17)
    put("gif-plain.gif", gif((23, 17), whole, palette))
    put("gif-short.gif", gif((23, 17), whole, short))
    put("gif-local.gif", gif((23, 17), whole, short, local=palette))
    put("gif-no-palette.gif", gif((23, 17), whole))
    put("gif-interlaced.gif", gif((23, 17), whole, palette, interlaced=1))
    for name, screen, frame in (
        ("inside", (40, 30), (5, 7, 23, 17)),
        ("beyond", (20, 10), (5, 7, 23, 17)),
        ("wider", (20, 60), (5, 7, 23, 17)),
        ("no-screen", (0, 0), (0, 0, 23, 17)),
        ("no-screen-offset", (0, 0), (3, 2, 23, 17)),
    ):
        for interlaced in (0, 1):
            for transparent in (None, 9, 200):
                for colours in (palette, short, None):
                    size = len(colours) if colours else 0
                    what = "gif-%s-%d-%s-%d.gif" % (name, interlaced, transparent, size)
                    put(what, gif(screen, frame, colours, transparent=transparent, interlaced=interlaced))
    put("gif-empty-frame.gif", gif((23, 17), (0, 0, 0, 17), palette))
    put("gif-no-frame.gif", b"GIF89a\2\0\2\0\0\0\0;")
    put("gif-comment.gif", gif((23, 17), whole, palette, before=b"!\xfe\3abc\2de\0\0\0"))
    put("gif-no-end.gif", gif((23, 17), whole, palette, end=False))
    put("gif-no-last.gif", gif((23, 17), whole, palette, end=False, last=b""))
    put("gif-too-much.gif", gif((23, 17), whole, palette, count=23 * 17 + 9))
    for interlaced in (0, 1):
        put("gif-ends-%d.gif" % interlaced, gif((23, 17), whole, palette, interlaced=interlaced, count=100))
        put("gif-stops-%d.gif" % interlaced, gif((23, 17), whole, palette, interlaced=interlaced, count=100, end=False))
        data = gif((30, 20), (2, 1, 23, 17), palette, interlaced=interlaced, transparent=3)
        for cut in list(range(1, 12)) + list(range(12, 400, 31)):
            put("gif-cut-%d-%d.gif" % (interlaced, cut), data[: len(data) - cut])
    first, second = noise("RGB", 30, 20), noise("RGB", 30, 20)
    put("gif-animated.gif", save(first, "GIF", save_all=True, append_images=[second]))


# The others.


def others():
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        put("bmp-%s.bmp" % mode, save(noise(mode, 37, 23), "BMP"))
    for mode in ("RGB", "RGBA"):
        for lossless in (False, True):
            put("webp-%s-%d.webp" % (mode, lossless), save(noise(mode, 37, 23), "WEBP", lossless=lossless, exact=True))
            frames = [noise(mode, 37, 23) for _ in range(2)]
            put("webp-animated-%s-%d.webp" % (mode, lossless), save(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless))
    # A frame that does not cover its canvas.
    inner = save(noise("RGB", 20, 10), "WEBP", lossless=True)
    picture = inner[12:]
    frame = struct.pack("<I", 3)[:3] + struct.pack("<I", 2)[:3] + struct.pack("<I", 19)[:3] + struct.pack("<I", 9)[:3] + b"\x64\0\0\0" + picture
    extended = b"\2\0\0\0" + struct.pack("<I", 36)[:3] + struct.pack("<I", 22)[:3]
    put("webp-small-frame.webp", riff((b"VP8X", extended), (b"ANIM", bytes(6)), (b"ANMF", frame)))
    for mode in ("L", "RGB", "CMYK"):
        put("jpeg-%s.jpg" % mode, save(noise(mode, 37, 23), "JPEG"))


if not files:
    orientations()
    tiffs()
    pngs()
    gifs()
    others()
for number, path in enumerate(files):
    with open(path, "rb") as opened:
        reference("file-%d" % number, opened.read())
