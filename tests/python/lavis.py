# The arithmetic of LAVIS's classes on an exported state dict, and the processors of an exported folder of
# transformers. `pixels` is defined before it.
import json
import re
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoProcessor, Blip2ForImageTextRetrieval

request = json.loads(sys.argv[1])
torch.set_grad_enabled(False)
images = [torch.from_numpy(pixels(path, request["side"])) for path in request["images"]]


def caption(text):
    """lavis/processors/blip_processors.py, BlipCaptionProcessor.pre_caption."""
    text = re.sub(r"([.!\"()*#:;~])", " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:50])


processor = AutoProcessor.from_pretrained(request["hf"])
for path, image in zip(request["images"], images):
    theirs = processor(images=Image.open(path).convert("RGB"), text="a", return_tensors="pt")["pixel_values"][0]
    assert (theirs - image).abs().max() < 1e-5, "the exported image processor is another"
tokenizer = processor.tokenizer
texts = [tokenizer(caption(text), truncation=True, max_length=request["text_len"])["input_ids"] for text in request["texts"]]


class Lavis:
    """Blip2Qformer's forward passes, row by row as its classes compute them."""

    def __init__(self, path, heads, tower_heads):
        self.state = load_file(path)
        self.heads, self.tower_heads = heads, tower_heads

    def linear(self, name, rows):
        return F.linear(rows, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, rows, eps):
        weight = self.state[f"{name}.weight"]
        return F.layer_norm(rows, weight.shape, weight, self.state[f"{name}.bias"], eps)

    def attend(self, query, key, value, heads, mask=0.0):
        split = lambda rows: rows.unflatten(-1, (heads, -1)).transpose(1, 2)
        query, key, value = split(query), split(key), split(value)
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + mask
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def tower(self, image):
        """eva_vit.py: VisionTransformer.forward_features, then ln_vision (1e-6 as exported)."""
        root = "visual_encoder."
        rows = F.conv2d(image, self.state[root + "patch_embed.proj.weight"],
                        self.state[root + "patch_embed.proj.bias"],
                        stride=self.state[root + "patch_embed.proj.weight"].shape[-1])
        rows = rows.flatten(2).transpose(1, 2)
        rows = torch.cat([self.state[root + "cls_token"], rows], 1) + self.state[root + "pos_embed"]
        block = 0
        while f"{root}blocks.{block}.norm1.weight" in self.state:
            name = f"{root}blocks.{block}."
            inside = self.norm(name + "norm1", rows, 1e-6)
            q_bias, v_bias = self.state[name + "attn.q_bias"], self.state[name + "attn.v_bias"]
            bias = torch.cat([q_bias, torch.zeros_like(v_bias), v_bias])
            query, key, value = F.linear(inside, self.state[name + "attn.qkv.weight"], bias).chunk(3, -1)
            mixed = self.attend(query, key, value, self.tower_heads)
            rows = rows + self.linear(name + "attn.proj", mixed)
            inside = F.gelu(self.linear(name + "mlp.fc1", self.norm(name + "norm2", rows, 1e-6)))
            rows = rows + self.linear(name + "mlp.fc2", inside)
            block += 1
        assert block > 0
        return self.norm("ln_vision", rows, 1e-6)

    def attention(self, name, rows, other, mask=0.0):
        query = self.linear(name + ".self.query", rows)
        key, value = self.linear(name + ".self.key", other), self.linear(name + ".self.value", other)
        mixed = self.linear(name + ".output.dense", self.attend(query, key, value, self.heads, mask))
        return self.norm(name + ".output.LayerNorm", mixed + rows, 1e-12)

    def feed_forward(self, name, suffix, rows):
        inside = F.gelu(self.linear(f"{name}.intermediate{suffix}.dense", rows))
        inside = self.linear(f"{name}.output{suffix}.dense", inside)
        return self.norm(f"{name}.output{suffix}.LayerNorm", inside + rows, 1e-12)

    def qformer(self, queries, ids, mask, image):
        """Qformer.py: BertEmbeddings, BertEncoder; query rows first, then text rows."""
        root = "Qformer.bert."
        parts, keys = [], []
        if queries is not None:
            parts.append(queries)
            keys.append(torch.ones(1, queries.shape[1]))
        if ids is not None:
            words = self.state[root + "embeddings.word_embeddings.weight"][ids]
            parts.append(words + self.state[root + "embeddings.position_embeddings.weight"][: ids.shape[1]])
            keys.append(mask)
        count = 0 if queries is None else queries.shape[1]
        rows = self.norm(root + "embeddings.LayerNorm", torch.cat(parts, 1), 1e-12)
        bias = (1.0 - torch.cat(keys, 1))[:, None, None, :] * -10000.0
        layer = 0
        while f"{root}encoder.layer.{layer}.attention.self.query.weight" in self.state:
            name = f"{root}encoder.layer.{layer}"
            rows = self.attention(name + ".attention", rows, rows, bias)
            query, text = rows[:, :count], rows[:, count:]
            if count:
                if f"{name}.crossattention.self.query.weight" in self.state:
                    query = self.attention(name + ".crossattention", query, image)
                query = self.feed_forward(name, "_query", query)
            if text.shape[1]:
                text = self.feed_forward(name, "", text)
            rows = torch.cat([query, text], 1)
            layer += 1
        assert layer > 0
        return rows

    def query_outputs(self, image):
        return self.qformer(self.state["query_tokens"], None, None, image)

    def image_features(self, outputs):
        return F.normalize(self.linear("vision_proj", outputs), dim=-1)[0]

    def text_features(self, ids, mask):
        words = self.qformer(None, ids, mask, None)
        return F.normalize(self.linear("text_proj", words[:, 0]), dim=-1)[0]

    def score(self, image, text, length):
        ids = torch.tensor([text + [0] * (length - len(text))])
        mask = torch.tensor([[1.0] * len(text) + [0.0] * (length - len(text))])
        image = self.tower(image[None])
        queries = self.state["query_tokens"]
        image_features = self.image_features(self.query_outputs(image))
        text_features = self.text_features(ids, mask)
        both = self.qformer(queries, ids, mask, image)[:, : queries.shape[1]]
        logits = self.linear("itm_head", both).mean(1)
        return (image_features @ text_features).max().item(), logits.double().softmax(1)[0, 1].item()
