"""Ways to run the blocks of a method's networks, which change nothing: recomputed, compiled."""

from ijepa.method import Method
from ijepa.ranges import Compile
from ijepa.vit import ViT


def recompute_blocks(method: Method, on: bool) -> None:
    """Let encoders recompute their blocks in the backward pass instead of storing activations."""
    for network in method.modules():
        if isinstance(network, ViT):
            network.activation_checkpointing = on


def compile_blocks(method: Method, which: Compile) -> None:
    """Let torch compile blocks: of encoders without gradients, with ``all`` those that learn too.

    The former nearly always see whole images: they are compiled for one shape, and for all if
    another one comes. The latter see as many patches as a step's masks leave: they are compiled
    once for all. A last block of which only some rows are read is not compiled.
    """
    from timm.models import beit, vision_transformer

    kinds = (beit.Block, vision_transformer.Block)
    for block in [module for module in method.modules() if isinstance(module, kinds)]:
        learns = any(p.requires_grad for p in block.parameters())
        if which == "all" or (which and not learns):
            block.compile(dynamic=learns or None)
