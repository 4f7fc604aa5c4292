"""FFCV: its own format (JPEG of quality 95, and ids made beforehand), which run.py has this script
write (`--write`); area resize. Its images stay rows of RGB in memory, its default."""
import os
import sys

import numpy as np
from ffcv.fields import NDArrayField, RGBImageField
from ffcv.fields.ndarray import NDArrayDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from measured import BATCH, FOLDER, MEAN, RATIO, SCALE, SHARDS, SIZE, STD, TOKENS, WORKERS, ids, run

DATA = os.path.join(FOLDER, "data.beton")


class Samples:
    def __init__(self):
        import tarfile
        self.rows = []
        for shard in SHARDS:
            with tarfile.open(shard) as tar:
                files = {m.name: tar.extractfile(m).read() for m in tar}
            self.rows += [(files[n], np.array(ids(files[n[:-3] + "txt"]), np.int64))
                          for n in files if n.endswith(".jpg")]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        import io

        from PIL import Image
        data, row = self.rows[index]
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), row


if "--write" in sys.argv:
    if not os.path.exists(DATA):
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95),
                  "ids": NDArrayField(shape=(TOKENS,), dtype=np.dtype("int64"))}
        DatasetWriter(DATA + ".part", fields, num_workers=2).from_indexed_dataset(Samples())
        os.rename(DATA + ".part", DATA)
    sys.exit()


def batches():
    normalise = NormalizeImage(255 * np.array(MEAN), 255 * np.array(STD), np.float32)
    loader = Loader(DATA, batch_size=BATCH, num_workers=WORKERS, order=OrderOption.QUASI_RANDOM,
                    os_cache=True, drop_last=True, pipelines={
                        "image": [RandomResizedCropRGBImageDecoder((SIZE, SIZE), SCALE, RATIO),
                                  RandomHorizontalFlip(), normalise, ToTensor(), ToTorchImage()],
                        "ids": [NDArrayDecoder(), ToTensor()]})
    while True:
        yield from loader


run(batches())
