"""NVIDIA DALI on the CPU: crop fused into the decoder, antialiased cubic. It has no tokenizer."""
import numpy as np
from measured import BATCH, MEAN, RATIO, SCALE, SHARDS, SIZE, STD, WORKERS, ids, run
from nvidia.dali import fn, pipeline_def, types


@pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, prefetch_queue_depth=2)
def pipeline():
    image, text = fn.readers.webdataset(paths=SHARDS, ext=["jpg", "txt"], random_shuffle=True,
                                        initial_fill=1000, missing_component_behavior="skip")
    image = fn.decoders.image_random_crop(image, device="cpu", random_area=list(SCALE),
                                          random_aspect_ratio=list(RATIO))
    image = fn.resize(image, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=True)
    image = fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="CHW",
                                     mean=[255 * m for m in MEAN], std=[255 * s for s in STD],
                                     mirror=fn.random.coin_flip())
    return image, fn.pad(text, fill_value=0)


def batches():
    loader = pipeline()
    loader.build()
    while True:
        images, texts = loader.run()
        rows = np.asarray(texts.as_tensor())
        yield (np.asarray(images.as_tensor()).copy(),
               np.array([ids(bytes(row).rstrip(b"\0")) for row in rows]))


run(batches())
