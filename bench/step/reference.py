"""One training step of the Q-Former as the reference takes it, in PyTorch eager, timed.

A plain re-implementation of LAVIS's `Blip2Qformer.forward` (BERT modules of LAVIS `Qformer.py`,
four passes, text padded to 32, keys and values of the image projected in every pass, every row of
every layer and every position of the language-model head computed) with the arithmetic of the
reference and nothing else: random weights, random features, given token counts.

Prints one JSON line per step: seconds of forward, backward and optimiser.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """BertAttention: projections, scores, softmax, dropout, output block."""

    def __init__(self, width, key_width, heads, dropout):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(key_width, width)
        self.value = nn.Linear(key_width, width)
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def split(self, rows):
        return rows.view(*rows.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, rows, keys, mask, past=None):
        key, value = self.split(self.key(keys)), self.split(self.value(keys))
        own = (key, value)
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        query = self.split(self.query(rows))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores + mask
        probabilities = self.dropout(scores.softmax(dim=-1))
        mixed = torch.matmul(probabilities, value).permute(0, 2, 1, 3).contiguous().flatten(2)
        return self.norm(self.dropout(self.dense(mixed)) + rows), own


class FeedForward(nn.Module):
    """BertIntermediate and BertOutput."""

    def __init__(self, width, inner, dropout):
        super().__init__()
        self.intermediate = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows):
        hidden = self.output(F.gelu(self.intermediate(rows)))
        return self.norm(self.dropout(hidden) + rows)


class Layer(nn.Module):
    def __init__(self, c, cross):
        super().__init__()
        self.attention = Attention(c.hidden, c.hidden, c.heads, c.dropout)
        self.cross = Attention(c.hidden, c.encoder_width, c.heads, c.dropout) if cross else None
        self.text = FeedForward(c.hidden, c.intermediate, c.dropout)
        self.queries = FeedForward(c.hidden, c.intermediate, c.dropout)

    def forward(self, rows, queries, mask, image, image_mask, past):
        rows, own = self.attention(rows, rows, mask, past)
        if queries == 0:
            return self.text(rows), own
        head = rows[:, :queries]
        if self.cross is not None:
            head, _ = self.cross(head, image, image_mask)
        head = self.queries(head)
        if rows.shape[1] > queries:
            head = torch.cat([head, self.text(rows[:, queries:])], dim=1)
        return head, own


class Qformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.words = nn.Embedding(c.vocab, c.hidden)
        self.positions = nn.Embedding(512, c.hidden)
        self.norm = nn.LayerNorm(c.hidden, eps=1e-12)
        self.dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList([Layer(c, i % 2 == 0) for i in range(c.layers)])
        self.transform = nn.Linear(c.hidden, c.hidden)
        self.transform_norm = nn.LayerNorm(c.hidden, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(c.vocab))

    def forward(self, queries=None, ids=None, mask=None, image=None, past=None):
        parts, count = [], 0
        if queries is not None:
            parts.append(queries)
            count = queries.shape[1]
        if ids is not None:
            positions = torch.arange(ids.shape[1], device=ids.device)
            parts.append(self.words(ids) + self.positions(positions))
        hidden = self.dropout(self.norm(torch.cat(parts, dim=1)))
        image_mask = None
        if image is not None:
            image_mask = torch.zeros(image.shape[0], 1, 1, image.shape[1])
        cache = []
        for index, layer in enumerate(self.layers):
            before = past[index] if past is not None else None
            hidden, own = layer(hidden, count, mask, image, image_mask, before)
            cache.append(own)
        return hidden, cache

    def predict(self, hidden):
        hidden = self.transform_norm(F.gelu(self.transform(hidden)))
        return F.linear(hidden, self.words.weight, self.bias)


class Blip2Qformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.ln_vision = nn.LayerNorm(c.encoder_width)
        self.qformer = Qformer(c)
        self.query_tokens = nn.Parameter(torch.randn(1, c.queries, c.hidden) * 0.02)
        self.vision_proj = nn.Linear(c.hidden, 256)
        self.text_proj = nn.Linear(c.hidden, 256)
        self.itm_head = nn.Linear(c.hidden, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def forward(self, features, ids, att):
        c, batch = self.c, ids.shape[0]
        image = self.ln_vision(features)
        queries = self.query_tokens.expand(batch, -1, -1)

        hidden, cache = self.qformer(queries=queries, image=image)
        image_feats = F.normalize(self.vision_proj(hidden), dim=-1)
        key_mask = (1.0 - att[:, None, None, :].float()) * -10000.0
        hidden, _ = self.qformer(ids=ids, mask=key_mask)
        text_feat = F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

        images, texts = image_feats.detach(), text_feat.detach()
        i2t = torch.matmul(image_feats, texts.t()).amax(1) / self.temp
        t2i = torch.matmul(images, text_feat.t()).amax(1).t() / self.temp
        targets = torch.arange(batch)
        itc = (
            F.cross_entropy(i2t, targets, label_smoothing=0.1)
            + F.cross_entropy(t2i, targets, label_smoothing=0.1)
        ) / 2

        with torch.no_grad():
            diagonal = torch.eye(batch, dtype=torch.bool)
            negative_images = torch.multinomial(
                t2i.masked_fill(diagonal, -10000.0).softmax(1), 1
            ).flatten()
            negative_texts = torch.multinomial(
                i2t.masked_fill(diagonal, -10000.0).softmax(1), 1
            ).flatten()
        all_ids = torch.cat([ids, ids, ids[negative_texts]])
        all_att = torch.cat([att, att, att[negative_texts]])
        all_images = torch.cat([image, image[negative_images], image])
        ones = torch.ones(3 * batch, c.queries, dtype=all_att.dtype)
        mask = torch.cat([ones, all_att], dim=1)
        mask = (1.0 - mask[:, None, None, :].float()) * -10000.0
        hidden, _ = self.qformer(
            queries=self.query_tokens.expand(3 * batch, -1, -1),
            ids=all_ids,
            mask=mask,
            image=all_images,
        )
        logits = self.itm_head(hidden[:, : c.queries]).mean(1)
        labels = torch.cat([torch.ones(batch), torch.zeros(2 * batch)]).long()
        itm = F.cross_entropy(logits, labels)

        decoder_ids = ids.clone()
        decoder_ids[:, 0] = c.vocab - 1
        length = ids.shape[1]
        causal = torch.tril(torch.ones(length, length))[None] * att[:, None, :].float()
        past_ones = torch.ones(batch, length, c.queries)
        mask = (1.0 - torch.cat([past_ones, causal], dim=2)[:, None]) * -10000.0
        hidden, _ = self.qformer(ids=decoder_ids, mask=mask, past=cache)
        scores = self.qformer.predict(hidden)[:, :-1]
        labels = decoder_ids.masked_fill(decoder_ids == 0, -100)[:, 1:]
        lm = F.cross_entropy(
            scores.reshape(-1, c.vocab), labels.reshape(-1), label_smoothing=0.1
        )
        return itc + itm + lm


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", required=True, help="token counts of the batch, by commas")
    parser.add_argument("--text-len", type=int, default=32)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--intermediate", type=int, default=3072)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--encoder-width", type=int, default=1408)
    parser.add_argument("--image-tokens", type=int, default=257)
    parser.add_argument("--vocab", type=int, default=30523)
    parser.add_argument("--dropout", type=float, default=0.1)
    c = parser.parse_args()
    torch.set_num_threads(c.threads)
    torch.manual_seed(0)
    model = Blip2Qformer(c)
    named = list(model.named_parameters())
    plain = [p for n, p in named if p.dim() == 1 or n.endswith("bias")]
    decayed = [p for n, p in named if not (p.dim() == 1 or n.endswith("bias"))]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98))
    lengths = torch.tensor([int(n) for n in c.lengths.split(",")])
    att = (torch.arange(c.text_len)[None] < lengths[:, None]).long()
    ids = torch.randint(1000, c.vocab - 1, att.shape) * att
    features = torch.randn(len(lengths), c.image_tokens, c.encoder_width)
    for step in range(c.warmup + c.steps):
        start = time.perf_counter()
        loss = model(features, ids, att)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        end = time.perf_counter()
        if step >= c.warmup:
            record = {
                "forward_s": forward - start,
                "backward_s": backward - forward,
                "optimiser_s": end - backward,
                "step_s": end - start,
                "loss": loss.item(),
            }
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
