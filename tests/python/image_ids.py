"""Contrastive losses of one batch by LAVIS's arithmetic, as JSON on stdout: argv[1] is a folder of `qftrain embed`, argv[2]
the temperature, argv[3] the images' ids as JSON.

The lines from `image_ids` to `loss_itc` are those of lavis/models/blip2_models/blip2_qformer.py, `forward`, with
`image_id` among the samples and without."""
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F

image_feats = torch.from_numpy(np.load(f"{sys.argv[1]}/image_embeddings.npy"))
text_feat = torch.from_numpy(np.load(f"{sys.argv[1]}/text_embeddings.npy"))
temp = float(sys.argv[2])
image_ids = torch.tensor(json.loads(sys.argv[3])).view(-1, 1)
bs = image_feats.size(0)

sim_q2t = torch.matmul(image_feats.unsqueeze(1), text_feat.unsqueeze(-1)).squeeze(-1)
sim_i2t, _ = sim_q2t.max(-1)
sim_i2t = sim_i2t / temp
sim_t2q = torch.matmul(text_feat.unsqueeze(1).unsqueeze(1), image_feats.permute(0, 2, 1)).squeeze(-2)
sim_t2i, _ = sim_t2q.max(-1)
sim_t2i = sim_t2i / temp

pos_idx = torch.eq(image_ids, image_ids.t()).float()
sim_targets = pos_idx / pos_idx.sum(1, keepdim=True)
sim_targets = 0.9 * sim_targets + 0.1 * torch.ones_like(sim_targets) / sim_targets.size(1)
loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * sim_targets, dim=1).mean()
loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * sim_targets, dim=1).mean()
shared = (loss_t2i + loss_i2t) / 2

targets = torch.arange(bs)
own = (F.cross_entropy(sim_i2t, targets, label_smoothing=0.1) + F.cross_entropy(sim_t2i, targets, label_smoothing=0.1)) / 2
json.dump({"shared": shared.item(), "own": own.item()}, sys.stdout)
