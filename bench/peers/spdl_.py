"""SPDL: a thread pipeline over FFmpeg, which crops, scales and flips in one filter graph."""
import math
import random

import numpy as np
import spdl.io
from measured import BATCH, RATIO, SCALE, SHARDS, SIZE, WORKERS, ids, planes, run
from spdl.pipeline import PipelineBuilder


def samples():
    held = []
    while True:
        with open(random.choice(SHARDS), "rb") as file:
            data = file.read()
        image = None
        for name, view in spdl.io.iter_tarfile(data):
            if name.endswith(".jpg"):
                image = bytes(view)
            elif image is not None:
                held.append((image, bytes(view)))
                if len(held) > 200:
                    yield held.pop(random.randrange(len(held)))


def sample(item):
    data, text = item
    area, aspect = random.uniform(*SCALE), math.exp(random.uniform(*map(math.log, RATIO)))
    width = f"min(iw\\,sqrt({area * aspect:.5f}*iw*ih))"
    height = f"min(ih\\,sqrt({area / aspect:.5f}*iw*ih))"
    at = f"x={random.random():.4f}*(iw-ow):y={random.random():.4f}*(ih-oh)"
    flip = ",hflip" if random.random() < 0.5 else ""
    filters = (f"crop=w={width}:h={height}:{at},scale={SIZE}:{SIZE}:flags=bicubic{flip},"
               "format=pix_fmts=rgb24")
    frames = spdl.io.decode_packets(spdl.io.demux_image(data), filter_desc=filters)
    return planes(spdl.io.to_numpy(spdl.io.convert_frames(frames))), ids(text)


def batch(items):
    return np.stack([i[0] for i in items]), np.array([i[1] for i in items])


def batches():
    builder = PipelineBuilder().add_source(samples()).pipe(sample, concurrency=WORKERS)
    loader = builder.aggregate(BATCH).pipe(batch).add_sink(4).build(num_threads=WORKERS)
    with loader.auto_stop():
        yield from loader.get_iterator(timeout=60)


run(batches())
