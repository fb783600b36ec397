"""Damage for files: seeded, so that a case can be made again from its number."""

import copy
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Mutator = Callable[[random.Random, bytes], bytes]

WRONG: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.5, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 10**9,
    10**12, 2**31,
    2**63, 10**40, -(10**12), "", "x", "true", "0", "tanh", "relu", "../../etc/passwd", "/etc/passwd", "C:\\con",
    "a\x00b",
    "\ud800", "<script>", "x" * 5000, "\u202eab", "os.system", [], [1], [[]], [None], ["x"], {}, {"a": 1},
    {"model_type": "vit"},
    {"0": 0}, [0] * 300, [{}],
]  # fmt: skip
"""Values where others belong: of every JSON kind, huge, not finite, paths, text that is no text."""

KEYS = ("auto_map", "model_type", "num_labels", "architectures", "id2label", "label2id", "trust_remote_code", "dtype",
        "torch_dtype", "quantization_config", "attn_implementation", "_name_or_path", "__class__", "rank",
        "problem_type",
        "use_cache", "transformers_version", "extra")  # fmt: skip


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flipped, cut, doubled, overwritten or inserted bytes, the beginning (where headers are) more often."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not found:
            return b"\x00"
        place = rng.randrange(min(len(found), 64) if rng.random() < 0.5 else len(found))
        kind = rng.randrange(6)
        if kind == 0:
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[place:]
        elif kind == 2:
            found[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 300))))
        elif kind == 3:
            found[place : place + 4] = rng.choice((b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        elif kind == 4:
            end = place + rng.randrange(1, 64)
            found[place:place] = found[place:end]
        else:
            del found[place : place + rng.randrange(1, 64)]
    return bytes(found)


def damaged_json(rng: random.Random, content: bytes) -> bytes:
    """A JSON file with another structure, other values, or another encoding."""
    if rng.random() < 0.25:
        return _odd_text(rng, content)
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _changed(rng, value)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _odd_text(rng: random.Random, content: bytes) -> bytes:
    text = content.decode()
    kind = rng.randrange(12)
    if kind == 0:
        return text.encode("utf-16")
    if kind == 1:
        return b"\xef\xbb\xbf" + content
    if kind == 2:
        return content.replace(b'"', b'"\xff\xfe', 1)
    if kind == 3:
        return b"[" * rng.choice((100, 100_000)) + content
    if kind == 4:
        return b'{"a":' * 3000 + b"1" + b"}" * 3000
    if kind == 5:  # a key twice
        return (text.rstrip()[:-1] + ', "model_type": "x", "model_type": "vit"}').encode()
    if kind == 6:
        return rng.choice((b"", b"null", b"[]", b"3", b'"text"', b"NaN", b"{}", b"\x00", b"[1, 2]", b"{"))
    if kind == 7:  # more digits than int() takes
        return (text.rstrip()[:-1] + ', "rank": ' + "9" * 10_000 + "}").encode()
    if kind == 8:
        return (text.rstrip()[:-1] + ', "extra": ' + "[" * 900 + "]" * 900 + "}").encode()
    return damaged_bytes(rng, content)


def _changed(rng: random.Random, value: Any) -> Any:
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(one: Any) -> None:
        for key in list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ():
            places.append((one, key))
            walk(one[key])

    walk(value)
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(WRONG))
    holder, key = rng.choice(places)
    kind = rng.randrange(10)
    if kind < 6:
        holder[key] = copy.deepcopy(rng.choice(WRONG))
    elif kind == 6:
        del holder[key]
    elif kind == 7 and isinstance(holder, dict):
        holder[rng.choice(KEYS)] = copy.deepcopy(rng.choice(WRONG))
    elif kind == 8:
        other, name = rng.choice(places)
        holder[key] = copy.deepcopy(other[name])
    elif isinstance(holder, dict):
        holder["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    else:
        holder[key] = [copy.deepcopy(holder[key])] * 2
    return value


def damaged_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header lies, or whose bytes are damaged."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, content)
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = rng.randrange(9)
    if kind == 0:  # the header's length lies
        return rng.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 10**8)).to_bytes(8, "little") + content[8:]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    one = header[name]
    if kind == 1:
        one["data_offsets"] = rng.choice(([0, 0], [0, 2**40], [-1, 4], [8, 4], [0, len(body) + 1], [], "x", [0.5, 2]))
    elif kind == 2:
        one["dtype"] = rng.choice(("F64", "I8", "BOOL", "F8_E4M3", "NONE", 3, None, "BF16"))
    elif kind == 3:
        one["shape"] = rng.choice(([], [0], [2**40], [2**62, 4], [-1], [1, *one["shape"]], "x", one["shape"][::-1]))
    elif kind == 4:
        del header[name]
    elif kind == 5:
        header[rng.choice(("../../x", "/etc/passwd", "a" * 5000, "", "x\x00y", name + ".extra"))] = header.pop(name)
    elif kind == 6:
        header["__metadata__"] = rng.choice(({"format": "tf"}, {"format": 3}, [], "x", {"cost": "{"},
        {"cost": '{"a":1}'},
                                             {"cost": '{"seconds": "x"}'}, None))  # fmt: skip
    elif kind == 7:  # a name twice
        text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(one)}}}"
        return len(text.encode()).to_bytes(8, "little") + text.encode() + body
    else:  # numbers that are not finite
        begin, end = one["data_offsets"]
        values = bytearray(body)
        values[begin:end] = (struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38))) * (end - begin))[
            : end - begin
        ]
        body = bytes(values)
    text = json.dumps(header)
    return len(text.encode()).to_bytes(8, "little") + text.encode() + body


def damaged_text(rng: random.Random, content: bytes) -> bytes:
    """A text file with lines lost, doubled, moved or replaced by others that mean something."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, content)
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.randrange(len(lines) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del lines[place : place + rng.randrange(1, 6)]
        elif kind == 1:
            lines[place:place] = lines[place : place + rng.randrange(1, 6)]
        elif kind == 2:
            rng.shuffle(lines)
        else:
            lines.insert(place, rng.choice(_LINES))
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


_LINES = (
    "---", "...", "tags: [", "tags: {a: 1}", "license: [mit]", "model-index: 3",
    "model-index:\n- name: x\n  results: 3",
    "a: &a [*a]", "a: !!python/object/apply:os.system ['touch /tmp/x']", "tags: !!python/name:os.system", "&x *x",
    "<!-- calor_hf:begin load -->", "<!-- calor_hf:end load -->", "<!-- calor_hf:own x -->",
    "<script>alert(1)</script>",
    "\t- x", "? ", "license: " + "x" * 5000, "base_model: ../../x", "../../x.jpg 3", "/etc/passwd 3", "a.jpg x", "\x00",
    "lol: &l [x,x,x,x,x,x,x,x,x]\nlol2: &m [*l,*l,*l,*l,*l,*l,*l,*l,*l]\nlol3: &n [*m,*m,*m,*m,*m,*m,*m,*m,*m]\n"
    "lol4: &o [*n,*n,*n,*n,*n,*n,*n,*n,*n]\nlol5: &p [*o,*o,*o,*o,*o,*o,*o,*o,*o]\nlol6: &q [*p,*p,*p,*p,*p,*p,*p]\n"
    "lol7: [*q,*q,*q,*q,*q,*q,*q,*q,*q]", "2026-13-45: 3", "datasets: 2026-01-01", "license: 3",
)  # fmt: skip


def damaged_image(rng: random.Random, content: bytes) -> bytes:
    """A image of some kind whose bytes are damaged, or whose header promises too much; ``content`` is unused."""
    kind = rng.randrange(10)
    if kind == 0:
        return _png(rng.choice(((2**31 - 1, 2**31 - 1), (60_000, 60_000), (1, 2**30), (0, 5), (20_000, 9_000))))
    if kind == 1:
        return _png_text_bomb()
    if kind == 2:
        return b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(rng.randrange(256) for _ in range(50))
    whole = _IMAGES[rng.randrange(len(_IMAGES))]
    return whole if rng.random() < 0.1 else damaged_bytes(rng, whole)


def _png(size: tuple[int, int], chunks: bytes = b"", data: bytes = b"\x00" * 100) -> bytes:
    return (b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)) + chunks
            + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b""))  # fmt: skip


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_text_bomb() -> bytes:
    return _png((1, 1), _chunk(b"zTXt", b"a\x00\x00" + zlib.compress(b"a" * 50_000_000)))


def _images() -> list[bytes]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (12, 10, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    deep = Image.fromarray(rng.integers(0, 65536, (12, 10), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 200
    found = []
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "png", {}), (rgba, "png", {}), (deep, "png", {}), (rgb.convert("P"), "png", {"transparency": 3}),
        (rgb, "jpeg", {"exif": exif}), (rgb.convert("CMYK"), "jpeg", {}), (rgb.convert("L"), "jpeg",
        {"progressive": True}),
        (rgb, "webp", {}), (rgba, "webp", {"lossless": True}), (rgb, "gif", {"save_all": True,
        "append_images": [rgb] * 3}),
        (rgba, "tiff", {}), (deep, "tiff", {}), (rgb, "tiff", {"compression": "tiff_lzw"}), (rgb, "bmp", {}), (rgb,
        "ppm", {}),
        (rgb.convert("F"), "tiff", {}), (rgb.convert("1"), "tiff", {"compression": "group4"}), (rgba, "ico", {}),
        (rgb, "webp", {"save_all": True, "append_images": [rgba] * 3}), (rgb, "tga", {}), (rgb, "pcx", {}),
    ]  # fmt: skip
    for image, form, options in forms:
        file = io.BytesIO()
        image.save(file, form, **options)
        found.append(file.getvalue())
    return found


_IMAGES = _images()
