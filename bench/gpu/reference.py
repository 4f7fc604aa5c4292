#!/usr/bin/env python3
"""Times stage 1 of BLIP-2 in PyTorch, as LAVIS computes it: a step on random pixels, frozen tower included.

    reference.py OUT.json [--device cuda] [--batches 16 100]

The Q-Former is that of bench/step/reference.py. The tower is LAVIS's EVA ViT: attention written out, weights
in 16 bits, everything under bf16 autocast. Of each batch size it times steps without waiting in between,
host and device each, and notes memory.
"""

import argparse
import importlib.util
import json
import pathlib
import time

import torch
import torch.nn.functional as F
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
LOW = torch.bfloat16
TEXT_LEN = 32
# Token counts of the first 16 captions of COCO's 2017 validation set.
LENGTHS = [13, 10, 14, 10, 16, 13, 15, 12, 16, 11, 11, 11, 11, 14, 10, 18]


class Block(nn.Module):
    def __init__(self, width, heads, mlp):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj, self.fc1 = nn.Linear(width, width), nn.Linear(width, mlp)
        self.fc2 = nn.Linear(mlp, width)

    def attention(self, x, fused):
        batch, tokens, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            mixed = scores.softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x, fused):
        x = x + self.attention(self.norm1(x), fused)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Tower(nn.Module):
    def __init__(self, c):
        super().__init__()
        tokens = (c.image_size // c.patch) ** 2 + 1
        self.patch = nn.Conv2d(3, c.width, c.patch, c.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, c.width))
        self.positions = nn.Parameter(torch.randn(1, tokens, c.width) * 0.02)
        self.blocks = nn.ModuleList(
            [Block(c.width, c.tower_heads, c.mlp) for _ in range(c.depth)]
        )
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(LOW)

    def forward(self, pixels, fused):
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1).to(x.dtype), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x, fused)
        return x


def qformer(c):
    """The model of bench/step/reference.py and its optimiser."""
    path = HERE.parent / "step" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Blip2Qformer(c)
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        spared = parameter.dim() == 1 or name.endswith("bias")
        (plain if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98))


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def back_to_back(step, device, warmup, steps):
    """Milliseconds of a step, and of the host's part in it."""
    for _ in range(warmup):
        step()
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    host = time.perf_counter() - start
    wait(device)
    return [1e3 * seconds / steps for seconds in (time.perf_counter() - start, host)]


def measure(c, tower, batch, device):
    model, optimizer = qformer(c)
    lengths = torch.tensor((LENGTHS * (batch // len(LENGTHS) + 1))[:batch])
    mask = (torch.arange(TEXT_LEN)[None] < lengths[:, None]).long()
    ids = torch.randint(1000 % (c.vocab - 2), c.vocab - 1, mask.shape) * mask
    pixels = torch.randn(batch, 3, c.image_size, c.image_size)

    def step(fused):
        with torch.autocast(device.type, dtype=LOW):
            with torch.no_grad():
                features = tower(pixels, fused)
            loss = model(features.float(), ids, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    result = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for name, fused in [("", False), ("fused_attention_", True)]:
        whole, host = back_to_back(lambda: step(fused), device, c.warmup, c.steps)
        result |= {f"{name}step_ms": whole, f"{name}host_ms": host}
    result["images_per_s"] = 1e3 * batch / result["step_ms"]
    if device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def matmul(device, side):
    """FLOP/s of a large product in 16 bits."""
    x, y = (torch.randn(side, side, dtype=LOW) for _ in range(2))
    ms, _ = back_to_back(lambda: x @ y, device, 3, 10)
    return 2 * side**3 / ms * 1e3


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 100])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--matmul", type=int, default=8192)
    for name, default in {
        "image-size": 224, "patch": 14, "width": 1408, "depth": 39, "tower-heads": 16, "mlp": 6144,
        "layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "queries": 32,
        "vocab": 30523,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    c = parser.parse_args()
    c.encoder_width = c.width
    return c


def main():
    c = arguments()
    device = torch.device(c.device)
    torch.set_default_device(device)
    torch.manual_seed(0)
    is_cuda = device.type == "cuda"
    result = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if is_cuda else "the CPU",
        "what": f"ViT of {c.depth} blocks in bf16, eager attention as in LAVIS, random pixels",
        "matmul_flop_per_s": matmul(device, c.matmul),
        "steps": {},
    }
    tower = Tower(c)
    for batch in c.batches:
        try:
            result["steps"][batch] = measure(c, tower, batch, device)
        except torch.OutOfMemoryError as error:
            result["steps"][batch] = {"error": str(error).splitlines()[0]}
        print(batch, json.dumps(result["steps"][batch]), flush=True)
        c.out.write_text(json.dumps(result, indent=1))
        if is_cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
