#!/usr/bin/env python3
"""The best script we know for resizing into shards: opencv_writer.py SOURCE OUT SIZE QUALITY WORKERS

OpenCV decodes JPEGs at 1/2, 1/4 or 1/8 where that is enough, resizes by area and encodes; webdataset.TarWriter
writes shards of 500. It ignores nothing that OpenCV does not ignore: EXIF orientation is applied.
"""
import glob
import json
import multiprocessing
import os
import sys

import cv2
import numpy
import simplejpeg
import webdataset

SOURCE, OUT = sys.argv[1:3]
SIZE, QUALITY, WORKERS = map(int, sys.argv[3:6])


def encode(path):
    data = numpy.fromfile(path, numpy.uint8)
    height, width, _, _ = simplejpeg.decode_jpeg_header(data.tobytes())
    short = min(height, width)
    flag = cv2.IMREAD_COLOR
    for factor, reduced in ((2, cv2.IMREAD_REDUCED_COLOR_2), (4, cv2.IMREAD_REDUCED_COLOR_4),
                            (8, cv2.IMREAD_REDUCED_COLOR_8)):
        if short >= factor * SIZE:
            flag = reduced
    image = cv2.imdecode(data, flag)
    height, width = image.shape[:2]
    scale = SIZE / min(height, width)
    size = (round(width * scale), round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes(), size


def write(job):
    number, paths = job
    cv2.setNumThreads(1)
    with webdataset.TarWriter(f"{OUT}/{number:05d}.tar") as tar:
        for path in paths:
            jpeg, (width, height) = encode(path)
            key = os.path.basename(path)[:-4]
            with open(path[:-4] + ".txt") as file:
                caption = file.read()
            about = {"key": key, "width": width, "height": height}
            tar.write({"__key__": key, "jpg": jpeg, "txt": caption, "json": about})


if __name__ == "__main__":
    files = sorted(glob.glob(f"{SOURCE}/*.jpg"))
    jobs = [(i, files[i * 500:(i + 1) * 500]) for i in range(-(-len(files) // 500))]
    if WORKERS == 1:
        for job in jobs:
            write(job)
    else:
        with multiprocessing.Pool(WORKERS) as pool:
            pool.map(write, jobs, 1)
