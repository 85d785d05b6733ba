"""The family of ConvEntion; torch is loaded only for computing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from skyheed.classifier.models.convention.config import Config
from skyheed.classifier.models.family import Family
from skyheed.classifier.prediction import Needs

if TYPE_CHECKING:
    from skyheed.classifier.models.base import Model, Network
    from skyheed.classifier.models.checkpoint import Info
    from skyheed.classifier.models.convention.network import ConvEntion
    from skyheed.classifier.serving import Where


class Convention(Family):
    """ConvEntion (Bairouk et al. 2023, A&A 673, A141), 3-D and 2-D, as published and as served."""

    name = "convention"
    summary = "convolutional attention over groups of stamps (Bairouk et al. 2023, A&A 673, A141)"
    config = Config
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "convention": {},
        "convention-2d": {"cnn": "2d"},
        "ict-convention": {"objective": {"name": "ict"}},
        "convention-paper": {"variant": "paper", "time": "position"},
    }

    def needs(self, config: Config) -> Needs:
        """Three stamps make the first group; the 2-D form classifies from the first stamp on."""
        span = config.group if config.variant == "stream" else 0
        return Needs(images=("science",), fewest=config.group, most=config.stamps, span=span)

    def build(self, config: Config) -> "ConvEntion":
        """See `Family.build`."""
        from skyheed.classifier.models.convention.network import ConvEntion

        return ConvEntion(config)

    def serve(self, network: "Network", info: "Info", where: "Where") -> "Model":
        """The stream variant caches its tokens; the paper's depends on its padding and is computed in full."""
        from skyheed.classifier.models.convention.predictor import Predictor

        if network.config.variant == "paper":
            return super().serve(network, info, where)
        return Predictor(cast("ConvEntion", network), info, where)

    def facts(self, config: Config) -> dict[str, Any]:
        """Number of parameters without effect, and operations as published and as computed here."""
        from skyheed.classifier.models.convention.counts import dead_parameters, operations, sequence_operations

        return {
            "dead_parameters": dead_parameters(config),
            "multiply_adds": {"group": operations(config), "sequence": sequence_operations(config)},
        }

    def operations(self, config: Config, stamps: int) -> int:
        """See `Family.operations`."""
        from skyheed.classifier.models.convention.counts import update_operations

        return update_operations(config, stamps)
