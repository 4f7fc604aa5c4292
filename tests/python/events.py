"""What TensorBoard's own reader finds in the folder argv[1], as JSON on stdout."""
import io
import json
import sys

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

everything = {"scalars": 0, "tensors": 0, "histograms": 0}
events = EventAccumulator(sys.argv[1], size_guidance=everything)
events.Reload()
tags = events.Tags()

def text(event):
    return [value.decode() for value in tensor_util.make_ndarray(event.tensor_proto).reshape(-1)]

def image(event):
    width, height, *encoded = tensor_util.make_ndarray(event.tensor_proto).reshape(-1)
    sizes = [Image.open(io.BytesIO(data)).convert("RGB").size for data in encoded]
    return {"step": event.step, "said": [int(width), int(height)], "sizes": sizes}

def plugin(tag):
    return events.SummaryMetadata(tag).plugin_data.plugin_name

found = {
    "scalars": {tag: [[e.step, e.value, e.wall_time] for e in events.Scalars(tag)] for tag in tags["scalars"]},
    "images": {tag: [image(e) for e in events.Tensors(tag)] for tag in tags["tensors"] if plugin(tag) == "images"},
    "descriptions": {tag: events.SummaryMetadata(tag).summary_description
                     for tag in tags["tensors"] if plugin(tag) == "images"},
    "texts": {tag: [[e.step, text(e)] for e in events.Tensors(tag)]
              for tag in tags["tensors"] if plugin(tag) == "text"},
    "histograms": {tag: [{"step": e.step, "num": e.histogram_value.num, "min": e.histogram_value.min,
                          "max": e.histogram_value.max, "counts": list(e.histogram_value.bucket)}
                         for e in events.Histograms(tag)] for tag in tags["histograms"]},
}
json.dump(found, sys.stdout)
