"""What each run of a config will cost, before anything is queued: ``python -m ijepa.cost --help``.

FLOPs, and the bytes that a step saves, are counted without weights or a GPU (ijepa/cost/flops.py).
GPU-hours = images x FLOPs per image / (peak x utilisation). UTILISATION is an assumption, derived
from one number: "under 1,200 GPU-hours" (paper) and 72 hours on 16 A100 80 GB (release's README)
for ViT-H/14. It therefore holds what the authors' loader, kernels and network held up, and an upper
bound of hours: other code on the same card can be twice as fast. For H100 and H200 it is a guess.
On V100 it is twice too high for code of 2021: ``--published`` sets predictions in half precision
beside what papers tell of MAE, DINO and iBOT, which agree with each other at 0.10. The error of
GPU-hours is therefore a factor of two; ratios of runs on one card are better than that.

The ratios of the paper are of hours, on cards that it does not name. In FLOPs, MAE's ViT-H/14 (1600
epochs) costs 2.3 times I-JEPA's (300 epochs), not "over 10", and iBOT's ViT-S/16 half as much, not
"over 2.5 times": the rest of those factors is cards and software, or is not explained.

``--gpu cpu`` trains each run for a while on this machine (ijepa/cost/speed.py). ``--gpu here`` does
so where this machine has cards that ijepa/cost/cards.py lacks; where it has no card, a second's
matrix product is its peak, of which small networks reach CPU_UTILISATION.

Memory = float32 weights, averages and their copies included, gradients (twice with several GPUs:
DDP has its buckets), two moments of AdamW, and what one part of a GPU's batch saves for the
backward pass. Not in it are what lives for moments only, the allocator's gaps and CUDA's own (about
1 GB). It was not measured on a GPU; expect 10 to 30 % more.

kWh = GPU-hours x the board's limit: an upper bound for the boards, without hosts, network, cooling.
"""
