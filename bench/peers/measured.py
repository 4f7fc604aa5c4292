"""What the peers share: the settings, captions to ids, bytes to floats, and the measured window.

A peer is a script `PEER.py SET_FOLDER WORKERS SECONDS`. It writes `start` when it has run for a
while, and `stop IMAGES` SECONDS later; run.py measures the processor time of its session between.
"""
import glob
import os
import random
import sys
import time

BATCH, SIZE, TOKENS = 16, 224, 32
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WARM_SECONDS = 3.0

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

FOLDER, WORKERS, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
SHARDS = sorted(glob.glob(os.path.join(FOLDER, "*.tar")))

FACTOR = (1 / (255 * np.array(STD, np.float32)))[:, None, None]
SHIFT = (np.array(MEAN, np.float32) / np.array(STD, np.float32))[:, None, None]

_tokenizer = None


def ids(caption):
    """A line of a caption file as BERT's ids."""
    global _tokenizer
    if _tokenizer is None:
        from tokenizers import BertWordPieceTokenizer
        _tokenizer = BertWordPieceTokenizer(os.path.join(FOLDER, "..", "vocab.txt"), lowercase=True)
        _tokenizer.enable_truncation(TOKENS)
        _tokenizer.enable_padding(length=TOKENS)
    if isinstance(caption, bytes):
        caption = caption.decode("utf-8", "replace")
    lines = caption.strip().split("\n")
    return _tokenizer.encode(random.choice(lines)).ids


def planes(pixels):
    """Rows of RGB bytes as normalised planes."""
    floats = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    floats *= FACTOR
    floats -= SHIFT
    return floats


def run(batches):
    """Takes batches (images, ids) for the measured time; `batches` never ends."""
    iterator = iter(batches)
    images, _ = next(iterator)
    shape = tuple(images.shape)
    assert shape == (BATCH, 3, SIZE, SIZE), shape
    warm = time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < warm:
        next(iterator)
    print("start", flush=True)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        count += len(next(iterator)[0])
    print("stop", count, time.perf_counter() - begin, flush=True)
    os._exit(0)  # Worker processes and threads of the peers do not always end.
