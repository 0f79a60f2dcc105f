"""Layouts in which others publish their encoders, as data; ijepa.released reads and writes them.

A layout says where an encoder's names begin, which names are no encoder's, and what kind of encoder
it must be. It imports no torch, so that a command line can name the layouts.

Names are those of the public files (see Assran et al., He et al., Baevski et al., Chen et al.,
Caron et al., Zhou et al., and the packages timm and transformers); no code is theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ijepa.architecture import Variant

LAYER_SCALE = 1e-5
"""Where a file has layer scales, what they began as is not in it; that they are there is."""


class Tower(NamedTuple):
    """One encoder of a file: a pattern of what its names begin with; where export puts it."""

    pattern: str
    key: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class Layout:
    """How one publisher's files are built.

    ``towers``: the first is the one to be evaluated; a nameless one is a file's only encoder.
    ``leftovers`` matches whole names, less the encoder's beginning if they have it, that are not
    the encoder's. ``names``: a published beginning and ours, {} standing for a block's number.
    ``variant`` None means whatever the tensors show.
    """

    towers: Mapping[str, Tower]
    leftovers: str
    variant: Variant | None = None
    names: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    patch: str = "patch_embed.proj.weight"


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
"""ViT, ViTMAE and IJepa in transformers."""
DINOV2_NAMES = {
    **SHARED_NAMES,
    "encoder.layer.{}.norm1.": "blocks.{}.norm1.",
    "encoder.layer.{}.norm2.": "blocks.{}.norm2.",
    "encoder.layer.{}.mlp.": "blocks.{}.mlp.",
    "encoder.layer.{}.layer_scale1.lambda1": "blocks.{}.ls1.gamma",
    "encoder.layer.{}.layer_scale2.lambda1": "blocks.{}.ls2.gamma",
}

SELF_DISTILLED = {
    "teacher": Tower(r"teacher\.(module\.)?(backbone\.)?", "teacher", "backbone."),
    "student": Tower(r"student\.(module\.)?(backbone\.)?", "student", "module.backbone."),
}
PROJECTION_HEAD = r"((state_dict|teacher|student)\.)?(module\.)?head\.(mlp|last_layer)\d?\..*"

LAYOUTS = {
    "ijepa": Layout(
        {
            "target": Tower(r"target_encoder\.(module\.)?", "target_encoder", "module."),
            "context": Tower(r"encoder\.(module\.)?", "encoder", "module."),
        },
        r"predictor\..*",
        Variant(),
    ),
    "mae": Layout(
        {"": Tower(r"(model\.)?(module\.)?", "model")},
        r"mask_token|decoder_.*",
        Variant(class_token=True, init="xavier"),
    ),
    "data2vec": Layout(
        {
            "model": Tower(r"(model\.)?(module\.)?", "model"),
            "ema": Tower(r"model_ema\.((module|state_dict|model)\.)*", "model_ema"),
        },
        r"mask_token|lm_head\..*",
        Variant(class_token=True, positions="relative", blocks="beit", layer_scale=1e-4),
    ),
    "cae": Layout(
        {"": Tower(r"(model\.)?(module\.)?encoder\.", "model", "encoder.")},
        r"(model\.)?(module\.)?(mask_token|(regresser|decoder|teacher|encoder_to_decoder\w*)\..*)",
        Variant(
            class_token=True, positions="sincos_rows_first", blocks="beit", layer_scale=LAYER_SCALE
        ),
    ),
    "dino": Layout(
        {**SELF_DISTILLED, "": Tower(r"(module\.)?(backbone\.)?")},
        rf"dino_loss\..*|{PROJECTION_HEAD}",
        Variant(class_token=True, positions="learned", init="dino"),
    ),
    "ibot": Layout(
        {
            **SELF_DISTILLED,
            "": Tower(r"(state_dict\.)?(module\.)?(backbone\.)?", "state_dict"),
        },
        rf"ibot_loss\..*|masked_embed|{PROJECTION_HEAD}",
        Variant(class_token=True, positions="learned", init="dino"),
    ),
    "timm": Layout(
        {"": Tower(r"((state_dict|model)\.)?(module\.)?")},
        r"mask_token|head(_dist)?\.(weight|bias)",
    ),
    "transformers": Layout(
        {"": Tower(r"((vit|ijepa|dinov2)\.)?")},
        r"(embeddings\.mask_token|pooler\..*|classifier\..*|decoder\..*)",
        names={**VIT_NAMES, **DINOV2_NAMES},
        patch="embeddings.patch_embeddings.projection.weight",
    ),
}
"""In the order in which a file that fits several is called by one."""

TOWERS = sorted({tower for layout in LAYOUTS.values() for tower in layout.towers if tower})
