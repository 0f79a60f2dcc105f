"""Folders that timm and transformers open: configuration, weights, preprocessor, model card.

``timm.create_model("local-dir:FOLDER", pretrained=True)`` and
``transformers.AutoModel.from_pretrained("FOLDER")`` then give the encoder's own features. Formats
are those of timm 1.0 (models/_hub.py) and transformers 5 (the classes named below), whose readers
also know the weights' names of transformers 4.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ijepa.architecture import Variant, ViTConfig
from ijepa.data.transforms import MEAN, STD, short_side
from ijepa.errors import UserError
from ijepa.files import to_json, written_whole
from ijepa.released.card import model_card
from ijepa.released.convert import check_published, split, translate
from ijepa.released.layouts import BEIT_NAMES, DINOV2_NAMES, VIT_NAMES
from ijepa.vit import LAYER_NORM_EPS, ViT

TIMM = {"vit": "vit_base_patch16_224", "beit": "beit_base_patch16_224"}
"""Registered network of timm from which each kind of blocks is built; model_args give its sizes."""

NAMES = {"BeitModel": BEIT_NAMES, "Data2VecVisionModel": BEIT_NAMES, "Dinov2Model": DINOV2_NAMES}


def contents(
    layout: str, encoder: ViT, about: dict[str, Any], results: list[dict[str, Any]], licence: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of a folder, and the text of each of its other files by name.

    Raises UserError if no network of the package computes what ``encoder`` does.
    """
    vit, variant = encoder.config, encoder.variant
    check_published(vit)
    if layout == "timm-folder":
        config, weights = timm_config(vit, variant), dict(encoder.state_dict())
    else:
        config = transformers_config(vit, variant)
        names = NAMES.get(config["architectures"][0], VIT_NAMES)
        weights = renamed(encoder.state_dict(), names)
    library = layout.removesuffix("-folder")
    card, entries = model_card(library, config, about, results, licence)
    texts = {
        "config.json": to_json(config),
        "preprocessor_config.json": to_json(preprocessor(vit)),
        "README.md": card,
    }
    if entries:
        texts[".eval_results/ijepa-bench.yaml"] = yaml.safe_dump(entries, sort_keys=False)
    return weights, texts


def write(
    out: Path,
    weights: Mapping[str, Tensor],
    texts: Mapping[str, str],
    check: Callable[[Path, Path], None],
) -> None:
    """Write a folder, each file whole; ``check(path, part)`` may refuse to replace one by another.

    Raises UserError if ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder")
    path = out / "model.safetensors"
    with written_whole(path) as part:
        try:
            copies = {name: value.clone().contiguous() for name, value in weights.items()}
            save_file(copies, part, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"{path} cannot be written ({error}): free some space") from None
        check(path, part)
    for name, text in texts.items():
        with written_whole(out / name) as part:
            part.write_text(text, encoding="utf-8")
            check(out / name, part)


def timm_config(vit: ViTConfig, variant: Variant) -> dict[str, Any]:
    """Content of timm's config.json; its pooling is that of the method's own protocol."""
    beit, relative = variant.blocks == "beit", variant.positions == "relative"
    if (beit and not variant.class_token) or (relative and not beit):
        raise no_class("timm", vit, variant)
    pool = "token" if variant.class_token else "avg"
    arguments = {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.dim,
        "depth": vit.depth,
        "num_heads": vit.num_heads,
        "mlp_ratio": vit.mlp_ratio,
        "init_values": variant.layer_scale,
        "num_classes": 0,
        "global_pool": pool,
    }
    if beit:
        arguments |= {"use_abs_pos_emb": not relative, "use_shared_rel_pos_bias": relative}
        # Not after pooling: the features are those after the final LayerNorm.
        arguments |= {"use_rel_pos_bias": False, "use_fc_norm": False}
    else:
        arguments |= {"class_token": variant.class_token, "fc_norm": False}
    return {
        "architecture": TIMM[variant.blocks],
        "num_classes": 0,
        "num_features": vit.dim,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, vit.image_size, vit.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            # timm divides by it and rounds down; the half keeps the quotient above the whole pixel
            "crop_pct": vit.side / (short_side(vit.side) + 0.5),
            "crop_mode": "center",
            "mean": vit.mean or MEAN,
            "std": vit.std or STD,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def transformers_config(vit: ViTConfig, variant: Variant) -> dict[str, Any]:
    """Content of the config.json of the one class of transformers that computes this encoder.

    MAE's encoder is a ViTModel: ViTMAEModel hides and shuffles patches in every forward pass.
    """
    relative = variant.positions == "relative"
    hidden = int(vit.dim * vit.mlp_ratio)
    config: dict[str, Any] = {
        "hidden_size": vit.dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "intermediate_size": hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "torch_dtype": "float32",
    }
    beit = {
        "layer_scale_init_value": variant.layer_scale or 0.0,
        "use_absolute_position_embeddings": not relative,
        "use_shared_relative_position_bias": relative,
        "use_mean_pooling": False,  # else the final LayerNorm is left out
        "drop_path_rate": 0.0,
    }
    scaled = variant.layer_scale is not None
    match variant.blocks, variant.class_token, relative, scaled:
        case "vit", False, False, False:
            name, kind = "IJepaModel", "ijepa"
        case "vit", True, False, False:
            name, kind = "ViTModel", "vit"
        case "vit", True, False, True if hidden % vit.dim == 0:
            name, kind = "Dinov2Model", "dinov2"
            config |= {"mlp_ratio": hidden // vit.dim, "use_mask_token": False}
        case "beit", True, True, _:
            name, kind = "Data2VecVisionModel", "data2vec-vision"
            config |= beit
        case "beit", True, False, _:
            name, kind = "BeitModel", "beit"
            config |= beit
        case _:
            raise no_class("transformers", vit, variant)
    return {"architectures": [name], "model_type": kind, **config}


def no_class(package: str, vit: ViTConfig, variant: Variant) -> UserError:
    """UserError for an encoder that no network of a package computes."""
    return UserError(
        f"{package} has no network of this kind (blocks: {variant.blocks}, class_token: "
        f"{variant.class_token}, positions: {variant.positions}, layer_scale: "
        f"{variant.layer_scale}, mlp_ratio: {vit.mlp_ratio:g}): choose another --layout"
    )


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights under their names in transformers, queries, keys and values apart."""
    back = {ours: theirs for theirs, ours in names.items()}
    theirs = {translate(name, back): value for name, value in split(weights).items()}
    assert None not in theirs, "the variant has decided the names"
    return {name: value for name, value in theirs.items() if name is not None}


def preprocessor(vit: ViTConfig) -> dict[str, Any]:
    """Content of preprocessor_config.json: the evaluation view (data.transforms.centre_crop)."""
    return {
        "image_processor_type": "BitImageProcessor",  # resizes, then cuts the centre
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": short_side(vit.side)},
        "resample": 3,  # PIL's bicubic
        "do_center_crop": True,
        "crop_size": {"height": vit.image_size, "width": vit.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": vit.mean or MEAN,
        "image_std": vit.std or STD,
    }
