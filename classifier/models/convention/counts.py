"""Cost of ConvEntion: multiply-adds as published and as computed here, and the parameters without effect."""

from dataclasses import replace

from skyheed.classifier.models.convention.config import Config


def dead_parameters(config: Config) -> int:
    """Number of parameters that provably have no effect: Q, and biases of K and logits, under linear attention."""
    if config.attention != "linear":
        return 0
    d = config.channels
    return config.layers * (d * d + 2 * d + config.heads)


def operations(config: Config) -> dict[str, int]:
    """Multiply-adds of one group: over all planes as in a plain Conv3d, and as in `through_planes`."""
    inputs = 1 if config.band_embedding == "none" else 2
    first, middle, last = ((config.map + more) ** 2 for more in (4, 2, 0))
    # of one plane of input for one plane of output
    plane = (
        first * 64 * inputs * 121, first * 128 * 64 * 25, middle * 64 * 128 * 9, last * config.channels * 64 * 9,
    )  # fmt: skip
    plain, needed = ((9, 15, 9, 3), (5, 6, 6, 3)) if config.cnn == "3d" else ((1,) * 4,) * 2
    return {
        "plain": sum(p * n for p, n in zip(plane, plain, strict=True)),
        "fast": sum(p * n for p, n in zip(plane, needed, strict=True)),
    }


def sequence_operations(config: Config) -> dict[str, int]:
    """Multiply-adds of the longest sequence: attention over all pairs as published, and as computed here."""
    d, pixels, n = config.channels, config.map**2, config.tokens
    linear = config.attention == "linear"
    maps = config.heads if linear else config.attention_hidden
    rest = pixels * (3 * d * d + 9 * d * d + 2 * 9 * 2 * d * d)  # qkv, output and the feed-forward part
    score = pixels * maps * 25 * d  # the 5x5 convolution
    pair = pixels * (d + (0 if linear else maps * config.heads))
    head = d * pixels * config.hidden + config.hidden * config.classes
    group = operations(config)
    fast = n * (rest + score + pixels * d) if linear else n * (rest + 2 * score + n * pair)
    plain = n * (rest + n * (score + pair))
    return {
        "plain": n * group["plain"] + config.layers * plain + head,
        "fast": n * group["fast"] + config.layers * fast + head,
    }


def update_operations(config: Config, stamps: int) -> int:
    """Multiply-adds of one new stamp for a history with this many: its group, and everything after the 3-D CNN.

    The paper's variant keeps no tokens, and computes all its groups with one of padding, and all tokens after the CNN.
    """
    if config.variant == "paper":
        absent = config.tokens - min(-(-stamps // config.group) + 1, config.tokens)
        return sequence_operations(config)["fast"] - absent * operations(config)["fast"]
    whole = sequence_operations(replace(config, stamps=stamps))["fast"]
    return whole - (-(-stamps // config.group) - 1) * operations(config)["fast"]
