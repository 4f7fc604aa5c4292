# What `qftrain embed` wrote, read by pyarrow and NumPy, against transformers and LAVIS's arithmetic. lavis.py
# comes before it.
import numpy as np
import pyarrow.parquet


def column(path, name, *shape):
    table = pyarrow.parquet.read_table(path)
    return torch.from_numpy(np.stack(table[name].to_numpy()).reshape(-1, *shape)).float()


queries, width, hidden = request["queries"], request["width"], request["hidden"]
images_file, texts_file, folder = request["parquet"], request["parquet_texts"], request["npy"]
ours = dict(
    images=column(images_file, "image_embedding", queries, width),
    outputs=column(images_file, "query_output", queries, hidden),
    texts=column(texts_file, "text_embedding", width),
)
arrays = {name: np.load(f"{folder}/{file}.npy") for name, file in
          dict(images="image_embeddings", outputs="query_outputs", texts="text_embeddings").items()}
for name, array in arrays.items():
    assert array.dtype == np.float32 and array.shape == tuple(ours[name].shape), (name, array.shape)
    assert np.array_equal(array, ours[name].numpy()), f"{name} of npy and of Parquet differ"
lines = [json.loads(line) for line in open(f"{folder}/images.jsonl")]
keys = pyarrow.parquet.read_table(images_file)["key"].to_pylist()
assert keys == request["images"] == [line["key"] for line in lines], keys
assert pyarrow.parquet.read_table(texts_file)["text"].to_pylist() == request["texts"]

lavis = Lavis(request["lavis"], request["heads"], request["tower_heads"])
hf = Blip2ForImageTextRetrieval.from_pretrained(request["hf"]).eval()
by_lavis, by_transformers = dict(images=[], outputs=[], texts=[]), dict(images=[], outputs=[], texts=[])
for image in images:
    outputs = lavis.query_outputs(lavis.tower(image[None]))
    by_lavis["outputs"].append(outputs[0])
    by_lavis["images"].append(lavis.image_features(outputs))
    seen = hf.vision_model(pixel_values=image[None]).last_hidden_state
    outputs = hf.qformer(query_embeds=hf.query_tokens, encoder_hidden_states=seen).last_hidden_state
    by_transformers["outputs"].append(outputs[0])
    by_transformers["images"].append(F.normalize(hf.vision_projection(outputs), dim=-1)[0])
for text in texts:
    ids = torch.tensor([text])
    by_lavis["texts"].append(lavis.text_features(ids, torch.ones(1, len(text))))
    words = hf.qformer(query_embeds=hf.embeddings(input_ids=ids), query_length=0,
                       attention_mask=torch.ones_like(ids)).last_hidden_state
    by_transformers["texts"].append(F.normalize(hf.text_projection(words[:, 0]), dim=-1)[0])


def worst(theirs):
    return {name: (ours[name] - torch.stack(rows)).abs().max().item() for name, rows in theirs.items()}


cosines = torch.stack(by_lavis["images"]) @ torch.stack(by_lavis["texts"]).T  # [I, Q, N]
print(json.dumps(dict(lavis=worst(by_lavis), transformers=worst(by_transformers),
                      cosines=cosines.amax(1).tolist(), spread=ours["outputs"].std().item())))
