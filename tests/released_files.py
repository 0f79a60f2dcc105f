"""Published files in miniature: the containers and every key that the releases' classes write."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ijepa.architecture import Variant, ViTConfig
from ijepa.methods import cae, data2vec
from ijepa.vit import ViT

VIT = ViTConfig(image_size=32, patch_size=4, dim=48, depth=2, num_heads=3)
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 1e-3, "params": [0]}],
}
ARGS = argparse.Namespace(lr=1e-3, output_dir="somewhere")
PLAIN = Variant(class_token=True, positions="learned")
SCALED = replace(PLAIN, layer_scale=1e-5)

Weights = dict[str, Tensor]


def network(variant: Variant, vit: ViTConfig = VIT, seed: int = 0) -> ViT:
    """An encoder in which no two parameters are alike."""
    torch.manual_seed(seed)
    net = ViT(vit, variant)
    for parameter in net.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def full_ijepa(w: Weights, other: Weights) -> Any:
    return {
        "encoder": under("module.", other),
        "predictor": under("module.", predictor_of_ijepa()),
        "target_encoder": under("module.", w),
        "opt": OPTIMIZER,
        "scaler": None,
        "epoch": 300,
        "loss": 0.1,
        "batch_size": 128,
        "world_size": 16,
        "lr": 1e-3,
    }


def full_mae(w: Weights, other: Weights) -> Any:
    decoder = {
        **{"mask_token": torch.ones(1, 1, 32), "decoder_pos_embed": torch.ones(1, 65, 32)},
        **layers("decoder_embed", "decoder_norm", "decoder_pred"),
        **block("decoder_blocks.0."),
    }
    whole = {"model": {**w, **decoder}, "optimizer": OPTIMIZER, "epoch": 799}
    return {**whole, "scaler": {"scale": 65536.0}, "args": ARGS}


def linear_probe_of_mae(w: Weights, other: Weights) -> Any:
    """The head is BatchNorm without weights, and a linear layer (main_linprobe)."""
    running = {f"head.0.running_{part}": torch.ones(48) for part in ("mean", "var")}
    head = {**running, "head.0.num_batches_tracked": torch.tensor(3), **layers("head.1")}
    return {"model": {**w, **head}, "optimizer": OPTIMIZER, "epoch": 89, "args": ARGS}


def full_data2vec(w: Weights, other: Weights) -> Any:
    index = {"rel_pos_bias.relative_position_index": torch.zeros(65, 65, dtype=torch.int64)}
    head = {"mask_token": torch.ones(1, 1, 48), **layers("lm_head")}
    whole = {"model": {**w, **index, **head}, "optimizer": OPTIMIZER, "epoch": 799, "scaler": {}}
    return {**whole, "args": ARGS, "model_ema": {**other, **index, **head}}


def full_cae(w: Weights, other: Weights) -> Any:
    """A file as save_model writes it: all but ``teacher``, the encoder a second time among it.

    ``encoder_to_regresser`` is only there where the decoder's width differs (ViT-L's script).
    """
    regressor = "regresser.regressor_blocks.0."
    norms = [f"{regressor}norm{part}" for part in ("1_q", "1_k", "1_v", "2_cross")]
    between = ("encoder_to_decoder", "encoder_to_decoder_norm")
    rest = {
        **{"mask_token": torch.ones(1, 1, 48), "rd_pos_embed": torch.ones(1, 65, 48)},
        **{f"{regressor}cross_attn.{part}.weight": torch.ones(48, 48) for part in "qkv"},
        **{f"{regressor}{part}_cross": torch.ones(48) for part in ("gamma_1", "gamma_2")},
        **{f"{regressor}cross_attn.{part}_bias": torch.ones(48) for part in "qv"},
        **layers(*norms, f"{regressor}cross_attn.proj", "regresser.norm"),
        **layers(f"{regressor}mlp_cross.fc1", f"{regressor}mlp_cross.fc2"),
        **layers(*between, "encoder_to_regresser", "encoder_to_regresser_norm"),
        **block("decoder.decoder_blocks.0."),
        **{f"decoder.decoder_blocks.0.gamma_{number}": torch.ones(48) for number in (1, 2)},
        **layers("decoder.norm", "decoder.head"),
    }
    return {"model": {**under("encoder.", w), **under("alignment_encoder.", other), **rest}}


def layers(*names: str) -> Weights:
    """Weight and bias of layers."""
    return {f"{name}.{part}": torch.ones(48) for name in names for part in ("weight", "bias")}


def block(prefix: str) -> Weights:
    """Parameters of a transformer block."""
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return layers(*(f"{prefix}{part}" for part in parts))


def predictor_of_ijepa() -> Weights:
    return {
        **{"mask_token": torch.ones(1, 1, 24), "predictor_pos_embed": torch.ones(1, 64, 24)},
        **layers("predictor_embed", "predictor_norm", "predictor_proj"),
        **block("predictor_blocks.0."),
    }


def full_dino(w: Weights, other: Weights) -> Any:
    gains = {f"head.last_layer.weight_{part}": torch.ones(96, 1) for part in "gv"}
    head = {**layers("head.mlp.0", "head.mlp.2", "head.mlp.4"), **gains}
    return {
        "student": under("module.", {**under("backbone.", other), **head}),
        "teacher": {**under("backbone.", w), **head},
        "optimizer": OPTIMIZER,
        "epoch": 100,
        "args": ARGS,
        "dino_loss": {"center": torch.zeros(1, 96)},
        "fp16_scaler": {"scale": 65536.0},
    }


def full_ibot(w: Weights, other: Weights) -> Any:
    whole = full_dino(w, other)
    whole["ibot_loss"] = {**whole.pop("dino_loss"), "center2": torch.zeros(1, 1, 96)}
    whole["student"]["module.backbone.masked_embed"] = torch.zeros(1, 48)
    for tower, prefix in (("student", "module."), ("teacher", "")):
        for part in "gv":  # the shared head, by the name that it has for patches
            whole[tower][f"{prefix}head.last_layer2.weight_{part}"] = torch.ones(96, 1)
    return whole


def ibot_with_norms(w: Weights, other: Weights) -> Any:
    """Heads of --norm_in_head syncbn --act_in_head gelu: a norm after each last layer, too."""
    whole = full_ibot(w, other)
    for tower, prefix in (("student", "module."), ("teacher", "")):
        for norm in ("mlp.1", "last_norm", "last_norm2"):
            whole[tower][f"{prefix}head.{norm}.running_mean"] = torch.ones(48)
    return whole


def bare(w: Weights, other: Weights) -> Any:
    return w


def timm_file(w: Weights, other: Weights) -> Any:
    return {**w, "head.weight": torch.ones(10, 48), "head.bias": torch.ones(10)}


def timm_training(w: Weights, other: Weights) -> Any:
    """A checkpoint of timm's train.py."""
    scaler = {"scale": torch.tensor(65536.0), "_growth_tracker": torch.tensor(0)}
    whole = {"epoch": 3, "arch": "vit_tiny_patch16_224", "state_dict": timm_file(w, other)}
    whole |= {"optimizer": OPTIMIZER, "args": ARGS, "amp_scaler": scaler, "metric": 71.2}
    return {**whole, "state_dict_ema": timm_file(other, w)}


def averaged(w: Weights, other: Weights) -> Any:
    """The state of torch's AveragedModel around a network of timm."""
    return {"state_dict": {"n_averaged": torch.tensor(7), **under("module.", timm_file(w, other))}}


def dinov2_file(w: Weights, other: Weights) -> Any:
    return {**w, "mask_token": torch.zeros(1, 48)}


def transformers_vit(w: Weights, other: Weights) -> Any:
    """Weights as ViTMAEForPreTraining names them."""
    return {**under("vit.", hugging_face(w)), "decoder.mask_token": torch.ones(1, 1, 32)}


def transformers_dinov2(w: Weights, other: Weights) -> Any:
    """Weights as Dinov2Model names them."""
    theirs = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    theirs |= {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    weights = {}
    for name, value in hugging_face(w).items():
        for old, new in theirs.items():
            if f".{old}." in name and "attention" not in name:
                name = name.replace(old, new)
        weights[name] = value
    return {**weights, "embeddings.mask_token": torch.zeros(1, 48)}


def state_of_transformers(w: Weights, other: Weights) -> Any:
    """Weights as ``torch.save(model.state_dict())`` writes a ViTModel of transformers 5."""
    theirs = {f"attention.attention.{name}.": f"attention.{name[0]}_proj." for name in PARTS}
    theirs |= {"attention.output.dense.": "attention.o_proj.", "encoder.layer.": "layers."}
    theirs |= {".intermediate.dense.": ".mlp.fc1.", ".output.dense.": ".mlp.fc2."}
    weights = {}
    for name, value in hugging_face(w).items():
        for old, new in theirs.items():
            name = name.replace(old, new)
        weights[name] = value
    return {**weights, **layers("pooler.dense")}


PARTS = ("query", "key", "value")


def hugging_face(w: Weights) -> Weights:
    embedding = {"patch_embed.proj": "patch_embeddings.projection", "cls_token": "cls_token"}
    inner = {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    out = {}
    for name, value in w.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            part, _, kind = rest.rpartition(".")
            prefix = f"encoder.layer.{number}."
            if part == "attn.qkv":
                for third, which in enumerate(PARTS):
                    rows = value[third * 48 : third * 48 + 48]
                    out[f"{prefix}attention.attention.{which}.{kind}"] = rows
            elif rest in inner:
                out[prefix + inner[rest]] = value
            else:
                out[f"{prefix}{inner[part]}.{kind}"] = value
        elif name.startswith("norm."):
            out[f"layer{name}"] = value
        elif name == "pos_embed":
            out["embeddings.position_embeddings"] = value
        else:
            part, _, kind = name.rpartition(".")
            if part:
                out[f"embeddings.{embedding[part]}.{kind}"] = value
            else:
                out[f"embeddings.{embedding[kind]}"] = value
    return out


FILES: dict[str, tuple[str, Variant, Callable[[Weights, Weights], Any]]] = {
    "ijepa": ("ijepa", Variant(), full_ijepa),
    "mae": ("mae", Variant(class_token=True), lambda w, _: {"model": w}),
    "mae, full": ("mae", Variant(class_token=True), full_mae),
    "mae, linear probe": ("mae", Variant(class_token=True), linear_probe_of_mae),
    "data2vec": ("data2vec", data2vec.Config().variant, full_data2vec),
    "cae": ("cae", cae.Config().variant, full_cae),
    "dino, backbone": ("dino", PLAIN, bare),
    "dino, full": ("dino", PLAIN, full_dino),
    "ibot, teacher": ("ibot", PLAIN, lambda w, _: {"state_dict": w}),
    "ibot, full": ("ibot", PLAIN, full_ibot),
    "ibot, norms in heads": ("ibot", PLAIN, ibot_with_norms),
    "timm": ("timm", PLAIN, timm_file),
    "timm, training": ("timm", PLAIN, timm_training),
    "timm, averaged": ("timm", PLAIN, averaged),
    "timm, I-JEPA": ("timm", Variant(), bare),
    "timm, DINOv2": ("timm", SCALED, dinov2_file),
    "transformers, ViTMAE": ("transformers", Variant(class_token=True), transformers_vit),
    "transformers, IJepa": (
        "transformers",
        Variant(),
        lambda w, _: under("ijepa.", hugging_face(w)),
    ),
    "transformers, ViT in memory": ("transformers", PLAIN, state_of_transformers),
    "transformers, Dinov2": ("transformers", SCALED, transformers_dinov2),
}


def fabricate(kind: str, path: Path) -> tuple[ViT, ViT]:
    """Write a published file to ``path``; returns its network, and that of its other tower."""
    _, variant, build = FILES[kind]
    nets = network(variant), network(variant, seed=1)
    torch.save(build(*(net.state_dict() for net in nets)), path)
    return nets
