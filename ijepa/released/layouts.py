"""Layouts in which others publish their encoders, as data; ijepa.released reads and writes them.

A layout gives the beginning of an encoder's names, the names that belong to no encoder, and the
kind of encoder that it must be. This module imports no torch, so that a command line can name the
layouts.

Names are those of the public files (see Assran et al., He et al., Baevski et al., Chen et al.,
Caron et al., Zhou et al., and the packages timm and transformers); no code was taken from them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ijepa.architecture import Variant

LAYER_SCALE = 1e-5
"""Initial layer scale given to an encoder from a file that has layer scales.

The file holds their trained values only, not the initial one.
"""


class Tower(NamedTuple):
    """One encoder of a file: pattern of its names' beginning, and export's key and prefix."""

    pattern: str
    key: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Layout:
    """Structure of one publisher's files.

    ``towers``: the first is the one to be evaluated; the tower "" is a file's only encoder.
    ``leftovers`` matches the whole names that are not the encoder's, after the encoder's beginning
    is removed if they have it. ``names`` maps a published beginning to ours; {} stands for a
    block's number. ``variant`` None means that the tensors decide. ``networks`` are the beginnings
    of a method's own names for towers that only their container tells apart.
    """

    towers: Mapping[str, Tower]
    leftovers: str
    variant: Variant | None = None
    names: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    patch: str = "patch_embed.proj.weight"
    networks: Mapping[str, str] = field(default_factory=dict)


SHARED_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "encoder.layer.{}.attention.attention.query.": "blocks.{}.attn.q.",
    "encoder.layer.{}.attention.attention.key.": "blocks.{}.attn.k.",
    "encoder.layer.{}.attention.attention.value.": "blocks.{}.attn.v.",
    "encoder.layer.{}.attention.output.dense.": "blocks.{}.attn.proj.",
    "layernorm.": "norm.",
}
VIT_NAMES = {
    **SHARED_NAMES,
    "encoder.layer.{}.layernorm_before.": "blocks.{}.norm1.",
    "encoder.layer.{}.layernorm_after.": "blocks.{}.norm2.",
    "encoder.layer.{}.intermediate.dense.": "blocks.{}.mlp.fc1.",
    "encoder.layer.{}.output.dense.": "blocks.{}.mlp.fc2.",
}
"""Names of ViT, ViTMAE and IJepa in transformers."""
DINOV2_NAMES = {
    **SHARED_NAMES,
    "encoder.layer.{}.norm1.": "blocks.{}.norm1.",
    "encoder.layer.{}.norm2.": "blocks.{}.norm2.",
    "encoder.layer.{}.mlp.": "blocks.{}.mlp.",
    "encoder.layer.{}.layer_scale1.lambda1": "blocks.{}.ls1.gamma",
    "encoder.layer.{}.layer_scale2.lambda1": "blocks.{}.ls2.gamma",
}

STATE_NAMES = {
    f"{block}.attention.{theirs}_proj.": f"blocks.{{}}.attn.{ours}."
    for block in ("layers.{}", "encoder.layer.{}")
    for theirs, ours in {"q": "q", "k": "k", "v": "v", "o": "proj"}.items()
} | {
    "layers.{}.layernorm_before.": "blocks.{}.norm1.",
    "layers.{}.layernorm_after.": "blocks.{}.norm2.",
    "layers.{}.mlp.": "blocks.{}.mlp.",
    "layers.{}.lambda_": "blocks.{}.gamma_",
}
"""Names that transformers 5 has in memory (``state_dict``); its ``save_pretrained`` writes those
above."""

BEIT_NAMES = {
    **VIT_NAMES,
    "encoder.relative_position_bias.": "rel_pos_bias.",
    "encoder.layer.{}.attention.attention.query.bias": "blocks.{}.attn.q_bias",
    "encoder.layer.{}.attention.attention.value.bias": "blocks.{}.attn.v_bias",
    "encoder.layer.{}.lambda_": "blocks.{}.gamma_",
}
"""Names of Beit and Data2VecVision in transformers."""

IN = r"(state_dict\.)?(model\.)?(module\.)*"
"""Containers that trainers put around a whole method: Lightning's is state_dict.model, those of
DistributedDataParallel and of averages module, each once more."""
ONE = r"((state_dict\.(model\.)?|model\.)(encoder\.)?)?(module\.)*"
"""Containers around a file's only encoder; ``encoder`` alone is a tower of I-JEPA."""

SELF_DISTILLED = {
    "teacher": Tower(rf"{IN}teacher\.(module\.)*(backbone\.)?", "teacher", "backbone."),
    "student": Tower(rf"{IN}student\.(module\.)*(backbone\.)?", "student", "module.backbone."),
}
PROJECTION_HEAD = rf"{IN}((teacher|student)\.)?(module\.)*head\.(mlp|last_layer|last_norm)\d?\..*"

LAYOUTS = {
    "ijepa": Layout(
        {
            "target": Tower(rf"{IN}target_encoder\.(module\.)*", "target_encoder", "module."),
            "context": Tower(rf"{IN}encoder\.(module\.)*", "encoder", "module."),
        },
        rf"{IN}predictor\..*",
        Variant(),
    ),
    "mae": Layout(
        {"": Tower(ONE, "model")},
        r"mask_token|decoder_.*|head\.\d\..*",
        Variant(class_token=True, init="xavier"),
    ),
    "data2vec": Layout(
        {
            "model": Tower(rf"{ONE}|student\.", "model"),
            "ema": Tower(r"model_ema\.((module|state_dict|model)\.)*|teacher\.", "model_ema"),
        },
        r"mask_token|lm_head\..*",
        Variant(
            class_token=True, positions="relative", blocks="beit", layer_scale=1e-4, init="beit"
        ),
        networks={"ema": "teacher.", "model": "student."},
    ),
    "cae": Layout(
        {"": Tower(rf"{IN}encoder\.", "model", "encoder.")},
        rf"{IN}(mask_token|"
        r"(regresser|decoder|teacher|alignment_encoder|encoder_to_(decoder|regresser)\w*)\..*)",
        Variant(
            class_token=True,
            positions="sincos_rows_first",
            blocks="beit",
            layer_scale=LAYER_SCALE,
            init="xavier_beit",
        ),
    ),
    "dino": Layout(
        # Weights directly in state_dict are iBOT's.
        {
            **SELF_DISTILLED,
            "": Tower(rf"(?!state_dict\.(?!model\.|encoder\.)){ONE}(backbone\.)?"),
        },
        rf"{IN}dino_loss\..*|{PROJECTION_HEAD}",
        Variant(class_token=True, positions="learned", init="dino"),
    ),
    "ibot": Layout(
        {
            **SELF_DISTILLED,
            "": Tower(rf"{ONE}(backbone\.)?", "state_dict"),
        },
        rf"{IN}ibot_loss\..*|masked_embed|{PROJECTION_HEAD}",
        Variant(class_token=True, positions="learned", init="dino"),
    ),
    "timm": Layout(
        {
            "": Tower(ONE),
            "ema": Tower(r"(state_dict_ema|model_ema)\.(module\.)*"),
        },
        r"mask_token|head(_dist)?\.(weight|bias)",
    ),
    "transformers": Layout(
        {"": Tower(rf"{IN}((vit|ijepa|dinov2|beit|data2vec_vision)\.)?")},
        rf"{IN}(embeddings\.mask_token|pooler\..*|classifier\..*|decoder\..*)",
        names={**STATE_NAMES, **BEIT_NAMES, **DINOV2_NAMES},
        patch="embeddings.patch_embeddings.projection.weight",
    ),
}
"""Layouts by name; a file that fits several is read in the first of them."""

FOLDERS = ("timm-folder", "transformers-folder")
"""Layouts of export that are a folder, which timm or transformers opens (released/folder.py)."""


def unwrapped(name: str, method: str) -> str:
    """Name of a tensor in its method, without the containers that trainers put around that."""
    if layout := LAYOUTS.get(method):
        for tower, network in layout.networks.items():
            if (match := re.match(layout.towers[tower].pattern, name)) and match.end():
                return network + name[match.end() :]
    return re.sub(r"\bmodule\.", "", re.sub(f"^{IN}", "", name))


TOWERS = sorted({tower for layout in LAYOUTS.values() for tower in layout.towers if tower})
