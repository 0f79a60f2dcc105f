"""Predicted cost of each run of a config, before anything is queued (``workflow.plan.cost``).

FLOPs, and the bytes that a step saves, are counted without weights or a GPU (ijepa/cost/flops.py).
GPU-hours = images x FLOPs per image / (peak x utilisation). UTILISATION is an assumption, derived
from one number for ViT-H/14: "under 1,200 GPU-hours" and under 72 hours (paper), on 16 A100 80 GB
(release's README). It therefore includes all delays by the authors' loader, kernels and network,
and the hours are an upper bound: other code on the same card can be twice as fast. For H100 and
H200 it is a guess. On V100 it is twice too high for code of 2021: ``--published`` sets predictions
in half precision beside the times that papers give for MAE, DINO and iBOT, which agree with each
other at 0.10. The error of GPU-hours is therefore a factor of two; ratios of runs on one card are
better than that.

The paper's ratios are ratios of hours, on cards that it does not name. In FLOPs, MAE's ViT-H/14
(1600 epochs) costs 2.3 times I-JEPA's (300 epochs), not "over 10", and iBOT's ViT-S/16 half as
much, not "over 2.5 times". The rest of those factors comes from cards and software, or is not
explained.

``--gpu cpu`` trains each run for a while on this machine (ijepa/cost/speed.py). ``--gpu here`` does
so if this machine has cards that ijepa/cost/cards.py lacks. If it has no card, the CPU's peak is
measured for a second on matrix products; small networks reach CPU_UTILISATION of it.

Memory = float32 weights (moving averages and other copies included), gradients (twice with several
GPUs, for DDP's buckets), two moments of AdamW, and the tensors that one part of a GPU's batch saves
for the backward pass. It leaves out short-lived tensors, the allocator's gaps and CUDA's own memory
(about 1 GB). It was not measured on a GPU; expect 10 to 30 % more.

kWh = GPU-hours x the board's limit: an upper bound for the boards, without hosts, network, cooling.
"""
