#!/usr/bin/env python3
"""img2dataset on local files: img2dataset_writer.py SOURCE OUT SIZE QUALITY WORKERS"""
import glob
import os
import sys

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import pandas
from img2dataset import download

if __name__ == "__main__":
    source, out = sys.argv[1:3]
    size, quality, workers = map(int, sys.argv[3:6])
    files = sorted(glob.glob(f"{source}/*.jpg"))
    captions = []
    for path in files:
        with open(path[:-4] + ".txt") as file:
            captions.append(file.read())
    table = out.rstrip("/") + ".parquet"
    pandas.DataFrame({"url": ["file://" + path for path in files], "caption": captions}).to_parquet(table)
    download(url_list=table, input_format="parquet", url_col="url", caption_col="caption", output_folder=out,
             output_format="webdataset", image_size=size, resize_mode="keep_ratio", encode_quality=quality,
             processes_count=workers, thread_count=2, number_sample_per_shard=500, enable_wandb=False)
