"""webdataset in a torch DataLoader. DECODER=pil: PIL and torchvision, antialiased bicubic.
DECODER=turbo: simplejpeg (libjpeg-turbo), reduced by the DCT while the crop stays at least 224
wide and high, then OpenCV's area resize."""
import math
import os
import random

import torch
import webdataset
from measured import BATCH, MEAN, RATIO, SCALE, SHARDS, SIZE, STD, WORKERS, ids, planes, run

if os.environ.get("DECODER") == "turbo":
    import cv2
    import simplejpeg
    cv2.setNumThreads(0)

    def crop_of(height, width):
        for _ in range(10):
            area = height * width * random.uniform(*SCALE)
            aspect = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        return 0, 0, height, width

    def pixels(data):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        y, x, h, w = crop_of(height, width)
        reduce = next((r for r in (8, 4, 2) if min(h, w) // r >= SIZE), 1)
        least = dict(min_height=-(-height // reduce), min_width=-(-width // reduce), min_factor=1)
        image = simplejpeg.decode_jpeg(data, "RGB", **(least if reduce > 1 else {}))
        scale = image.shape[0] / height
        y, x, h, w = (int(v * scale) for v in (y, x, h, w))
        image = cv2.resize(image[y:y + h, x:x + w], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        if random.random() < 0.5:
            image = image[:, ::-1]
        return torch.from_numpy(planes(image))
else:
    import io

    from PIL import Image
    from torchvision import transforms
    transform = transforms.Compose([
        transforms.RandomResizedCrop(SIZE, SCALE, RATIO, transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])

    def pixels(data):
        return transform(Image.open(io.BytesIO(data)).convert("RGB"))

torch.set_num_threads(1)
samples = webdataset.WebDataset(SHARDS, resampled=True, shardshuffle=False).shuffle(1000)
samples = samples.to_tuple("jpg", "txt").map_tuple(pixels, lambda text: torch.tensor(ids(text)))
batches = samples.batched(BATCH, partial=False)
run(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=WORKERS, prefetch_factor=4))
