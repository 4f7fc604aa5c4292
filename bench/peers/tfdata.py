"""tf.data: decode_and_crop_jpeg (fused), bicubic resize; ANTIALIAS=1 for one that is. Reads records
that hold the file and ids made beforehand, which run.py has this script write (`--write`)."""
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
from measured import BATCH, FOLDER, MEAN, RATIO, SCALE, SHARDS, SIZE, STD, TOKENS, WORKERS, ids, run
import tensorflow as tf

RECORDS = os.path.join(FOLDER, "records.tfrecord")


def write():
    import tarfile
    feature = tf.train.Feature
    with tf.io.TFRecordWriter(RECORDS + ".part") as writer:
        for shard in SHARDS:
            with tarfile.open(shard) as tar:
                files = {m.name: tar.extractfile(m).read() for m in tar}
            for name in (n for n in files if n.endswith(".jpg")):
                row = ids(files[name[:-3] + "txt"])
                example = tf.train.Example(features=tf.train.Features(feature={
                    "jpg": feature(bytes_list=tf.train.BytesList(value=[files[name]])),
                    "ids": feature(int64_list=tf.train.Int64List(value=row))}))
                writer.write(example.SerializeToString())
    os.rename(RECORDS + ".part", RECORDS)


def sample(record):
    parsed = tf.io.parse_single_example(record, {
        "jpg": tf.io.FixedLenFeature([], tf.string),
        "ids": tf.io.FixedLenFeature([TOKENS], tf.int64)})
    shape = tf.io.extract_jpeg_shape(parsed["jpg"])
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape, tf.zeros([1, 0, 4]), min_object_covered=0.0, aspect_ratio_range=RATIO,
        area_range=SCALE, max_attempts=10, use_image_if_no_bounding_boxes=True)
    window = tf.concat([begin[:2], size[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(parsed["jpg"], window, channels=3)
    image = tf.image.resize(image, (SIZE, SIZE), "bicubic",
                            antialias=os.environ.get("ANTIALIAS") == "1")
    image = tf.image.random_flip_left_right(image)
    image = (image - [255 * m for m in MEAN]) / [255 * s for s in STD]
    return tf.transpose(image, [2, 0, 1]), parsed["ids"]


if "--write" in sys.argv:
    if not os.path.exists(RECORDS):
        write()
    sys.exit()
tf.config.threading.set_inter_op_parallelism_threads(WORKERS)
tf.config.threading.set_intra_op_parallelism_threads(1)
data = tf.data.TFRecordDataset(RECORDS).repeat().shuffle(200)
data = data.map(sample, num_parallel_calls=WORKERS, deterministic=False).batch(BATCH).prefetch(2)
options = tf.data.Options()
options.threading.private_threadpool_size = WORKERS
options.threading.max_intra_op_parallelism = 1
run(data.with_options(options).as_numpy_iterator())
