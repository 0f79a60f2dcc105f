"""Subject of an evaluation: one encoder on one labelled data set.

Shape suffixes: N images, L layers, D features.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evals.about import read_about
from evals.pooling import PATCHES, Pool, own, parts
from ijepa.architecture import ViTConfig
from ijepa.data.loader import Images
from ijepa.data.shards import Index, read_index
from ijepa.encoder_file import encoder_digest
from ijepa.errors import UserError
from ijepa.files import written_whole

if TYPE_CHECKING:
    from ijepa.vit import ViT


@dataclass(frozen=True)
class Subject:
    """One encoder on one labelled data set.

    Args:
        data: Folder of shards.
        label: Kind of label to predict, one of the data set's.
        encoder: Encoder file, for evaluations on images.
        features_of: ``about.json`` of stored features, for evaluations on features.
        out: File of the result, beside which an evaluation writes its pictures.
        work: Folder for the checkpoint from which an interrupted evaluation goes on.
        identity: Short hash of encoder, data, label and protocol. A checkpoint of another identity
            is not used.
        limit: Number of images to use by split, from the first on, where not all are.
    """

    data: Path
    label: str
    encoder: Path | None = None
    features_of: Path | None = None
    work: Path | None = None
    out: Path | None = None
    identity: str = ""
    limit: dict[str, int] = field(default_factory=dict)

    @cached_property
    def index(self) -> Index:
        """Index of the shards; raises UserError if they have no such label."""
        index = read_index(self.data)
        if self.label not in index.labels:
            names = ", ".join(index.labels) or "none: its images have no labels"
            raise UserError(f"{self.data} has no label {self.label!r}; it has {names}")
        return index

    @property
    def num_classes(self) -> int:
        """Number of classes of the label."""
        classes = self.index.labels[self.label]
        return len(classes) if isinstance(classes, list) else classes

    def images(self, split: str) -> Images:
        """Images of a split, by number."""
        if split not in self.index.splits:
            raise UserError(
                f"{self.data} has no split {split!r}; it has {', '.join(self.index.splits)}"
            )
        if split not in self._images:
            self._images[split] = Images(self.data, split)
        return self._images[split]

    @cached_property
    def _images(self) -> dict[str, Images]:
        """Splits that are open. Parsing ImageNet's offsets and labels takes seconds."""
        return {}

    def labels(self, split: str) -> Tensor:
        """Class numbers of a split, [N] int64."""
        labels = self.images(split).labels[self.label]
        return torch.from_numpy(labels[: self.limit.get(split, len(labels))]).long()

    def subset(self, name: str) -> Tensor:
        """Numbers of the training images in an official list, such as ``1pct``."""
        subsets = self.images("train").subsets
        if name not in subsets:
            names = ", ".join(subsets) or "none"
            raise UserError(
                f"{self.data} has no subset {name!r}; it has {names}: put the official list beside "
                "the raw files and make the shards again"
            )
        numbers = torch.from_numpy(subsets[name]).long()
        return numbers[numbers < len(self.labels("train"))]

    def features(self, split: str, pool: Pool | None = None, layers: int = 1) -> Tensor:
        """Pooled features of the last ``layers``, shallow to deep, [N, L, D] float16.

        ``pool`` None means the method's own. They are memory-mapped: only slices that are used are
        read. Convert a slice to float32, not all of it.
        """
        assert self.features_of is not None, "this evaluation was not given features"
        x_NLD = stored(self.features_of, split, pool, layers)
        count = len(self.labels(split))
        if len(x_NLD) < count:
            raise UserError(
                f"{self.features_of.parent} has features of {len(x_NLD)} {split} images, {count} "
                "are asked for: delete the folder and extract them again"
            )
        return torch.from_numpy(x_NLD[:count])

    def network(self) -> "ViT":
        """Network of the encoder, on the CPU; a new one at every call."""
        network, _ = self._loaded()
        check_channels(Path(self.encoder or ""), network.config, self.index)
        return network

    def _loaded(self) -> tuple["ViT", dict[str, Any]]:
        # Not at the top: timm takes seconds to import; evaluations of features do not need it.
        from ijepa.checkpoint import load_encoder

        if self.encoder is None:
            raise UserError("raw pixels have no encoder: evaluate them on features")
        return load_encoder(self.encoder)

    def about(self) -> dict[str, Any]:
        """Provenance of the subject: encoder, the run that made it, data set and its version."""
        if self.features_of is not None:
            return read_about(self.features_of)
        assert self.encoder is not None
        return {
            "encoder": encoder_digest(self.encoder),
            **self._loaded()[1],
            "dataset": self.index.dataset,
            "data_version": self.index.version(),
        }

    def resume(self) -> dict[str, Any] | None:
        """State that ``checkpoint`` kept of this evaluation; None if there is none."""
        if self.work is None or not (path := self.work / "checkpoint.pt").exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state["state"] if state["identity"] == self.identity else None

    def checkpoint(self, state: dict[str, Any]) -> None:
        """Keep tensors and plain data for ``resume``, whole or not at all."""
        if self.work is not None:
            with written_whole(self.work / "checkpoint.pt") as part:
                torch.save({"identity": self.identity, "state": state}, part)


def stored(
    features_of: Path, split: str, pool: Pool | None = None, layers: int = 1
) -> NDArray[np.float16]:
    """Stored features of a split, [N, L, D], memory-mapped from beside ``features_of``.

    The file has [cls], if the encoder has one, and the patches' average side by side. ``pool`` None
    means the method's own. Raises UserError if the file is damaged, or if fewer layers were stored
    than ``layers`` asks for and the network has.
    """
    path, about = features_of.with_name(f"{split}.npy"), read_about(features_of)
    try:
        x_NLD: NDArray[np.float16] = np.load(path, mmap_mode="c")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete its folder and extract the features again"
        ) from None
    depth = about["run"]["vit"]["depth"] if "run" in about else 1
    if min(layers, depth) > x_NLD.shape[1]:
        raise UserError(
            f"layers is {layers}, but features of {x_NLD.shape[1]} layers are stored: ask for "
            "fewer, or set uses: images"
        )
    names = about.get("features_of_tokens", list(PATCHES))
    chosen = parts(pool or own(about))
    dim = x_NLD.shape[2] // len(names)
    first, last = names.index(chosen[0]), names.index(chosen[-1]) + 1
    return x_NLD[:, -layers:, first * dim : last * dim]


def check_channels(encoder: Path, vit: ViTConfig, index: Index) -> None:
    """Raise UserError if an encoder is for images of other channels than a data set's."""
    if vit.channels != index.channels:
        raise UserError(
            f"{encoder} is for images of {vit.channels} channels, {index.dataset} has "
            f"{index.channels}: evaluate it on another data set"
        )


def finite(x: Tensor) -> Tensor:
    """Return the features unchanged; raises UserError if one of them is not a finite number."""
    if not x.isfinite().all():
        raise UserError(
            "some of the features are not finite numbers: their encoder is damaged or diverged, "
            "evaluate another one"
        )
    return x


def checked_labels(subject: Subject, split: str) -> Tensor:
    """Class numbers of a split, [N]; raises UserError if one is outside the label's classes."""
    y = subject.labels(split)
    if wrong := ((y < 0) | (y >= subject.num_classes)).nonzero().flatten().tolist():
        raise UserError(
            f"{split} image {wrong[0]} of {subject.data} has {subject.label} {int(y[wrong[0]])}, "
            f"but there are {subject.num_classes} classes, from 0 on: mend the labels and make the "
            "shards again"
        )
    return y
