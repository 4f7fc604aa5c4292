"""Writes the sets of the loader benchmarks: `make_sets.py OUT [PAIRS]`.

A: 2,000 samples, photographs of a shorter side of at most 512 pixels, quality 95 where they had to
be reduced; B: 400 samples of 3 megapixels, quality 90; C: those of A, all of them encoded again with
quality 95 and 4:2:0 sampling, as img2dataset and FFCV do. From a folder of NAME.jpg and NAME.txt, or
generated: noise of equal strength at every scale, as photographs have it. WebDataset tar shards.
"""
import glob
import io
import os
import random
import sys
import tarfile

import numpy as np
from PIL import Image

OUT, PAIRS = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
WORDS = "a man woman dog cat bus on in the of near street red blue green small large two sits".split()


def encode(image, quality):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=2)
    return out.getvalue()


def generate(seed, width=683, height=512):
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cell, strength in ((256, 60), (96, 40), (32, 22), (10, 12), (3, 7), (1, 5)):
        grid = rng.normal(size=(height // cell + 2, width // cell + 2, 3)) * [1, 1, 1]
        grid = 0.8 * grid.mean(2, keepdims=True) * 1.7 + 0.2 * grid
        planes = [np.asarray(Image.fromarray(grid[:, :, c].astype(np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC)) for c in range(3)]
        total += strength * np.stack(planes, 2)
    return Image.fromarray(np.clip(total + 120, 0, 255).astype(np.uint8))


def photographs():
    if PAIRS:
        for path in sorted(glob.glob(os.path.join(PAIRS, "*.jpg"))):
            with open(path, "rb") as file, open(path[:-3] + "txt", "rb") as text:
                yield file.read(), text.read()
        return
    rng = random.Random(1)
    for seed in range(150):
        caption = " ".join(rng.choices(WORDS, k=11)) + ".\n"
        yield encode(generate(seed), 92), caption.encode()


def write(folder, samples, shards, each):
    os.makedirs(folder, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(f"{folder}/{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard * each, (shard + 1) * each):
                image, text = samples[number % len(samples)]
                for extension, data in (("jpg", image), ("txt", text)):
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def mean(samples):
    sizes = [Image.open(io.BytesIO(image)).size for image, _ in samples]
    width, height = (sum(s[i] for s in sizes) / len(sizes) for i in (0, 1))
    size = sum(len(image) for image, _ in samples) / len(samples)
    return f"{len(samples)} photographs, mean {width:.0f}x{height:.0f}, {size / 1e3:.0f} KB"


def encode_again():
    """C from A."""
    samples, again = [], {}
    for path in sorted(glob.glob(os.path.join(OUT, "A", "*.tar"))):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in files.items():
            if name.endswith(".jpg"):
                if data not in again:
                    again[data] = encode(Image.open(io.BytesIO(data)).convert("RGB"), 95)
                samples.append((again[data], files[name[:-3] + "txt"]))
    write(os.path.join(OUT, "C"), samples, 8, 250)
    with open(os.path.join(OUT, "sets.txt"), "a") as file:
        file.write(f"C: {mean(list(dict(samples).items()))}\n")


def main():
    for name, make in (("complete", originals), ("complete-C", encode_again)):
        done = os.path.join(OUT, name)
        if not os.path.exists(done):
            make()
            open(done, "w").close()


def originals():
    small, large = [], []
    found = list(photographs())
    random.Random(0).shuffle(found)
    for data, text in found:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if min(image.size) > 512:
            k = 512 / min(image.size)
            size = (round(image.width * k), round(image.height * k))
            data = encode(image.resize(size, Image.Resampling.LANCZOS), 95)
        small.append((data, text))
    for data, text in sorted(found, key=lambda sample: -len(sample[0]))[:100]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        k = (3e6 / (image.width * image.height)) ** 0.5
        size = (round(image.width * k), round(image.height * k))
        large.append((encode(image.resize(size, Image.Resampling.LANCZOS), 90), text))
    write(os.path.join(OUT, "A"), small, 8, 250)
    write(os.path.join(OUT, "B"), large, 8, 50)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "'", "-"]
    words = b" ".join(text for _, text in found).decode("utf-8", "replace").lower()
    counts = {}
    for word in "".join(c if c.isalpha() and c.isascii() else " " for c in words).split():
        counts[word] = counts.get(word, 0) + 1
    entries += sorted(counts, key=lambda w: (-counts[w], w))[:20_000]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    entries += ["##" + c for c in letters] + [c for c in letters if c not in counts]
    with open(os.path.join(OUT, "vocab.txt"), "w") as file:
        file.write("\n".join(entries) + "\n")
    with open(os.path.join(OUT, "sets.txt"), "w") as file:
        file.write(f"A: {mean(small)}\nB: {mean(large)}\n")


main()
