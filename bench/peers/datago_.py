"""datago (Rust): reads shards over HTTP only, crops the centre, does not flip; the rest is added
here. Its shards come from a server in this script's session."""
import functools
import http.server
import json
import multiprocessing
import os
import random
import socketserver

import numpy as np
from measured import BATCH, FOLDER, SHARDS, SIZE, WORKERS, ids, planes, run

os.environ["DATAGO_MAX_TASKS"] = str(WORKERS)
os.environ.setdefault("RUST_LOG", "error")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def batches(port):
    from datago import DatagoClient
    url = f"http://127.0.0.1:{port}/{{00000..{len(SHARDS) - 1:05d}}}.tar"
    client = DatagoClient(json.dumps({
        "source_type": "webdataset",
        "source_config": {"url": url, "random_sampling": True, "concurrent_downloads": 2,
                          "rank": 0, "world_size": 1},
        "prefetch_buffer_size": 64, "samples_buffer_size": 32, "limit": 10_000_000,
        "image_config": {"crop_and_resize": True, "default_image_size": SIZE,
                         "downsampling_ratio": 14, "min_aspect_ratio": 1.0,
                         "max_aspect_ratio": 1.0, "pre_encode_images": False,
                         "image_to_rgb8": True}}))
    client.start()
    images, rows = [], []
    while sample := client.get_sample_auto_convert():
        pixels = np.asarray(sample["image"])
        if random.random() < 0.5:
            pixels = pixels[:, ::-1]
        images.append(planes(pixels))
        rows.append(ids(sample["attributes"].get("txt", "")))
        if len(images) == BATCH:
            yield np.stack(images), np.array(rows)
            images, rows = [], []


if __name__ == "__main__":
    handler = functools.partial(Handler, directory=FOLDER)
    socketserver.ThreadingTCPServer.daemon_threads = True
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True).start()
    run(batches(server.server_address[1]))
