"""One vector for every stamp, and causal attention over them: an update costs one stamp, however long the history is.

An encoder computes features of each stamp independently, to which band and time are added. Two Transformer blocks
follow, in which a token attends to itself and earlier ones. The last token and the running mean of all form the
representation. Every prefix of a history is therefore classified in the same pass, and nothing computed for an epoch
ever changes: keys, values and outputs are cached (`token_cache`), and only new stamps are computed.

Options, off by default and without effect on the basic form: difference and template stamps, photometry from packets,
context numbers (`fusion`).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyheed.classifier.flux_scaling import Scaling
from skyheed.classifier.history import BANDS, History
from skyheed.classifier.models import base
from skyheed.classifier.models.attention import Block, block_operations
from skyheed.classifier.models.base import Arrays, Batch, Model, Network
from skyheed.classifier.models.encoders import Encoder, PhysNet, RepVgg, Small
from skyheed.classifier.models.fusion.parts import Context, Points
from skyheed.classifier.models.transformers import Swin, Vit
from skyheed.classifier.models.vector_inputs import Config as Config
from skyheed.classifier.models.vector_inputs import Inputs
from skyheed.classifier.prediction import Needs
from skyheed.classifier.stamp import STAMP_SIZE

if TYPE_CHECKING:
    from skyheed.classifier.models.checkpoint import Info
    from skyheed.classifier.serving import Where


def encoder_of(config: Config) -> Encoder:
    """The encoder that a configuration names."""
    if config.encoder == "repvgg":
        return RepVgg(config.channels, config.band == "film")
    if config.encoder == "small":
        return Small(config.channels, config.norm == "batch")
    kinds: dict[str, type[PhysNet | Vit | Swin]] = {"physnet": PhysNet, "vit": Vit, "swin": Swin}
    return kinds[config.encoder](config.channels)


class Vector(Network):
    """See the module."""

    config: Config
    reader: ClassVar[type[Inputs]] = Inputs

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width = config, 2 * config.width
        self.inputs = self.reader(config)
        self.encoder = encoder_of(config)
        self.embed = nn.Linear(self.encoder.features, config.width)
        self.band = nn.Embedding(len(BANDS), config.width)
        self.time = nn.Linear(3, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm, self.dropout = nn.LayerNorm(config.width), nn.Dropout(config.dropout)
        self.head = nn.Linear(self.width, config.classes)
        self._options(config)

    def _options(self, config: Config) -> None:
        """Create the optional parts that are switched on."""
        several, pixels = len(config.kinds) > 1, STAMP_SIZE**2
        self.band_images = nn.Embedding(len(BANDS), pixels) if config.band == "image" else None
        self.present = nn.Linear(len(config.kinds), config.width, bias=False) if several else None
        self.score = nn.Linear(config.width, 1) if config.pooling == "attention" else None
        self.points = Points(config.width, config.missing) if config.photometry else None
        self.context = Context(self.width, config.missing) if config.context else None

    def fit_inputs(self, histories: Sequence[History], scaling: Scaling) -> None:
        """See `Network.fit_inputs`."""
        if self.context is not None:
            self.context.fit(histories)

    def collate(self, histories: Sequence[History], scaling: Scaling) -> Arrays:
        """See `Network.collate` and `Inputs.collate`."""
        return self.inputs.collate(histories, scaling)

    def stamp_vectors(self, images: Tensor, band: Tensor) -> Tensor:
        """Vectors [m, width] of stamps [m, kinds, 32, 32] in the bands [m], each computed independently."""
        images = self._withheld(images)
        channels = images
        if self.band_images is not None:
            own = self.band_images(band).view(-1, 1, STAMP_SIZE, STAMP_SIZE)
            channels = torch.cat([images, own.to(images.dtype)], 1)
        vectors = self.embed(self.encoder(channels, band)) + self.band(band)
        if self.present is not None:
            vectors = vectors + self.present((images != 0).flatten(2).any(2).to(vectors.dtype))
        out: Tensor = vectors
        return out

    def per_stamp(self, images: Tensor, band: Tensor) -> Tensor:
        """Everything that is computed from a stamp alone in serving, [m, `Config.per_stamp`]; the vector is first."""
        return self.stamp_vectors(images, band)

    def _withheld(self, images: Tensor) -> Tensor:
        """In training, stamps from which some kinds other than the science image are removed."""
        if not self.training or self.present is None:
            return images
        shape = (*images.shape[:2], 1, 1)
        keep = torch.rand(shape, device=images.device) >= self.config.missing
        keep[:, self.config.kinds.index("science")] = True
        return images * keep

    def outputs(self, batch: Batch) -> Tensor:
        """Tokens after all blocks, [b, n, width], each of which attends only to itself and earlier ones."""
        valid = batch["valid"]
        made = self.stamp_vectors(batch["images"][valid], batch["band"][valid])  # padding is never computed
        vectors = made.new_zeros(*valid.shape, made.shape[1]).index_put((valid,), made)
        return self.behind(vectors, batch)

    def behind(self, vectors: Tensor, batch: Batch) -> Tensor:
        x = vectors + self.time(batch["times"])
        if self.points is not None:
            return self._among_points(x, batch)
        for block in self.blocks:
            x = block(x, causal=True)  # padding is at the end, so no token attends to it
        out: Tensor = self.norm(x)
        return out

    def _among_points(self, x: Tensor, batch: Batch) -> Tensor:
        """Stamps and photometric points as one sequence in time; returns the outputs at the stamps."""
        assert self.points is not None
        both = torch.cat([x, self.points(batch["points"], batch["point_band"])], 1)
        seen = torch.cat([batch["valid"], self.points.shown(batch["points"], batch["points_valid"])], 1)
        order, place, width = batch["order"], batch["place"], both.shape[2]
        both = both.gather(1, order[:, :, None].expand(-1, -1, width))
        seen = seen.gather(1, order)
        n = both.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool, device=both.device).tril() & seen[:, None, None]
        mask |= torch.eye(
            n, dtype=torch.bool, device=both.device
        )  # withheld tokens attend to themselves, so that no row is empty
        for block in self.blocks[:-1]:
            both = block(both, mask)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        out: Tensor = self.norm(last.at(both, place, mask))  # nothing reads the other tokens of the last block
        return out

    def represent(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The representation after every epoch [b, n, 2 width], from outputs [b, n, width]."""
        y = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        if self.score is None:
            counts = torch.arange(1, y.shape[1] + 1, device=y.device)[:, None]
            pooled = y.cumsum(1) / counts
        else:
            weights = (10 * torch.tanh(self.score(y) / 10)).exp()  # bounded, so that running sums stay exact
            pooled = (weights * y).cumsum(1) / weights.cumsum(1)
        both = torch.cat([y, pooled], 2)
        return both if self.context is None else both + self.context(batch["context"])[:, None]

    def encode(self, batch: Batch) -> Tensor:
        """See `Network.encode`."""
        last = batch["valid"].sum(1) - 1
        return self.represent(self.outputs(batch), batch)[torch.arange(len(last), device=last.device), last]

    def classify(self, encoded: Tensor) -> Tensor:
        """See `Network.classify`."""
        out: Tensor = self.head(self.dropout(encoded))
        return out

    def representations(self, batch: Batch, generator: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        """Representations of the histories and all their beginnings, at no additional cost."""
        valid = batch["valid"]
        return self.represent(self.outputs(batch), batch)[valid], valid.nonzero()[:, 0].cpu().numpy()

    def fold(self) -> "Vector":
        """The network in its serving form, with the same outputs in evaluation mode."""
        made = copy.deepcopy(self)
        made.encoder.fold()
        return made


class VectorFamily(base.Family):
    """A token for every stamp and causal attention, with a choice of encoders."""

    name = "vector"
    summary = "one vector for every stamp, causal attention, an update costs one stamp"
    config: ClassVar[type[Any]] = Config
    network: ClassVar[type[Any]] = Vector
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "vector": {},
        "physnet": {"encoder": "physnet", "band": "image"},
        "vit": {"encoder": "vit", "objective": {"name": "pretrained"}},
        "swin": {"encoder": "swin", "band": "image"},
    }

    def needs(self, config: Config) -> Needs:
        """See `Family.needs`."""
        return Needs(config.kinds, config.photometry, config.context, 1, config.stamps, span=1)

    def serve(self, network: Network, info: "Info", where: "Where") -> Model:
        """Serve the folded network with cached values of earlier predictions."""
        from skyheed.classifier.models.vector_serving import VectorServed

        assert isinstance(network, Vector)
        return VectorServed(network, info, where)

    def served_parameters(self, network: Network) -> int:
        """See `Family.served_parameters`."""
        assert isinstance(network, Vector)
        return base.parameters(network.fold())

    def facts(self, config: Config) -> dict[str, Any]:
        """Number of parameters of the encoder, and also with its decoder if it can be pre-trained."""
        encoder = encoder_of(config)
        count = base.parameters(encoder.backbone if isinstance(encoder, PhysNet) else encoder)
        if not isinstance(encoder, Vit) or config.channels > 1:
            return {"parameters_encoder": count}
        from skyheed.classifier.models.mae import MaskedAutoencoder

        whole = count + base.parameters(MaskedAutoencoder(encoder))
        return {"parameters_encoder": count, "parameters_with_decoder": whole}

    def operations(self, config: Config, stamps: int) -> int:
        """See `Family.operations`."""
        encoder = encoder_of(config)
        behind = config.layers * block_operations(config.width, 1, stamps)
        if config.photometry:  # all tokens are computed again, those of points but for the last block
            tokens = stamps + config.points
            behind = (config.layers - 1) * block_operations(config.width, tokens, tokens)
            behind += block_operations(config.width, stamps, tokens) + 2 * config.points * config.width**2
        rest = encoder.features * config.width + 3 * config.width + 2 * config.width * config.classes
        return encoder.operations + behind + rest
