"""The model against slow, plain forms of itself, and its count of parameters."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_tools import lively
from torch import Tensor
from torch.nn import functional

from skyheed.classifier import model_list
from skyheed.classifier.models.convention import counts
from skyheed.classifier.models.convention import network as convention
from skyheed.classifier.models.convention.network import Attention, Block, Config, ConvEntion, Features

PUBLISHED = Config(variant="paper", time="position", classes=4)  # 1,253,108 parameters


def batch(lengths: list[int], width: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """A random padded batch of sequences with this many stamps."""
    generator = torch.Generator().manual_seed(seed)
    n = width or max(-(-length // 3) for length in lengths)
    present = torch.arange(3 * n)[None] < torch.tensor(lengths)[:, None]
    pixels = torch.randn(len(lengths), 3 * n, 32, 32, generator=generator) * present[:, :, None, None]
    bands = torch.randint(1, 6, (len(lengths), 3 * n), generator=generator) * present
    days = torch.rand(len(lengths), 3 * n, generator=generator).cumsum(1) * present
    shape = (len(lengths), n, 3)
    present = present.view(shape)
    return {
        "pixels": pixels.view(*shape, 32, 32), "bands": bands.view(shape), "valid": present.any(-1),
        "days": days.view(shape), "present": present,
    }  # fmt: skip


def test_the_published_parameters_layer_by_layer() -> None:
    rows = dict(model_list.layers(ConvEntion(PUBLISHED)))
    assert rows["features.embedding"] == 10_240
    assert [rows[f"features.conv{i}"] for i in (1, 2, 3, 4)] == [46_528, 614_528, 221_248, 13_832]
    assert [rows[f"features.norm{i}"] for i in (1, 2, 3, 4)] == [128, 256, 128, 16]
    for layer in (0, 1):
        block = {name: n for name, n in rows.items() if name.startswith(f"blocks.{layer}.")}
        assert sum(block.values()) == 89_516
        assert block[f"blocks.{layer}.norm1"] == block[f"blocks.{layer}.norm2"] == 42_768
        assert sum(n for name, n in block.items() if ".attention." in name) == 1_604
        assert sum(n for name, n in block.items() if ".feed." in name) == 2_376
    assert (rows["head.1"], rows["head.4"]) == (166_144, 1_028)
    assert sum(rows.values()) == 1_253_108
    assert sum(n for _, n in model_list.layers(ConvEntion(replace(PUBLISHED, classes=3)))) == 1_252_851


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"size": 64}, 3_546_868),
        ({"channels": 16}, 1_624_156),
        ({"classes": 14}, 1_255_678),
        ({"bands": 20}, 1_264_372),
    ],
)
def test_other_shapes_have_the_right_count_and_run(changes: dict[str, Any], count: int) -> None:
    config = replace(PUBLISHED, **changes)
    assert sum(n for _, n in model_list.layers(ConvEntion(config))) == count
    stream = ConvEntion(replace(config, variant="stream", stamps=12)).eval()
    given = batch([4, 3], 2)
    side = config.size
    given["pixels"] = torch.randn(2, 2, 3, side, side)
    with torch.inference_mode():
        tokens = stream.tokens(given["pixels"], given["bands"], given["valid"])
        logits = stream.logits(tokens, given["valid"], given["days"], given["present"])
    assert logits.shape == (2, config.classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_padding_changes_nothing_while_the_stream_variant_learns(kind: Any) -> None:
    """Batch norm counts real groups only, so statistics and gradients are those of the sequences alone."""
    states = []
    for width in (2, 5):
        model = lively(Config(attention=kind, dropout=0.0)).double().train()
        given = {k: v.double() if v.is_floating_point() else v for k, v in batch([5, 2], 2).items()}
        padded = {k: functional.pad(v, [0, 0] * (v.dim() - 2) + [0, width - 2]) for k, v in given.items()}
        tokens = model.tokens(padded["pixels"], padded["bands"], padded["valid"])
        loss = model.logits(tokens, padded["valid"], padded["days"], padded["present"]).pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        states.append([*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()])
    for short, long in zip(*states, strict=True):
        torch.testing.assert_close(long, short, rtol=1e-9, atol=1e-9)


def test_the_paper_variant_normalises_over_channels_pixels_and_time() -> None:
    x = torch.randn(2, 33, 8, 9, 9, dtype=torch.float64)
    norm = Block(PUBLISHED).double().norm1
    expected = (x - x.mean((1, 2, 3, 4), keepdim=True)) / (
        x.var((1, 2, 3, 4), unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_the_dead_parameters_never_matter() -> None:
    model = lively(Config())
    given = batch([9, 5])
    before = model(given)
    for block in model.blocks:
        with torch.no_grad():
            block.attention.qkv.weight[:8].normal_()  # type: ignore[union-attr, index]
            block.attention.qkv.bias[:16].normal_()  # type: ignore[union-attr, index]
            block.attention.logits.bias.normal_()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(model(given), before, rtol=1e-5, atol=1e-6)
    assert counts.dead_parameters(Config()) == 2 * (64 + 8 + 8 + 4)


def plain_features(model: Features, pixels: Tensor, bands: Tensor) -> Tensor:
    """The 3D-CNN as published: Conv3d with its zero planes."""
    x = model.images(pixels, bands).transpose(1, 2)
    for i in (1, 2, 3, 4):
        conv, norm = getattr(model, f"conv{i}"), getattr(model, f"norm{i}")
        x = functional.relu(norm(conv(x)))
    return x.squeeze(2)


@pytest.mark.parametrize("training", [False, True])
def test_the_planes_equal_the_3d_convolutions(training: bool) -> None:
    model = lively(Config()).double().features.train(training)
    given = batch([9, 6])
    pixels, bands = given["pixels"].flatten(0, 1).double(), given["bands"].flatten(0, 1)
    plain = plain_features(model, pixels, bands)
    torch.testing.assert_close(model(pixels, bands), plain, rtol=1e-12, atol=1e-12)
    assert plain.shape == (6, 8, 9, 9)


def plain_attention(model: Attention, x: Tensor, valid: Tensor) -> Tensor:
    """Every pair through the network, as in the paper: O(n^2); [b, n, y, x, d] -> the same."""
    x = x.movedim(-1, 2).contiguous()
    b, n, d = x.shape[:3]
    q, k, v = model.qkv(x.flatten(0, 1)).view(b, n, 3 * d, 9, 9).chunk(3, 2)
    out = torch.zeros_like(x)
    for row in range(b):
        keys = [j for j in range(n) if valid[row, j]]
        for i in range(n):
            logits = []
            for j in keys:
                pair = model.logits((q[row, i] + k[row, j])[None])
                logits.append(pair if model.kind == "linear" else model.score(functional.leaky_relu(pair)))
            weights = torch.cat(logits).softmax(0)
            for head in range(model.heads):
                width = d // model.heads
                channels = slice(head * width, (head + 1) * width)
                out[row, i, channels] = sum(w[head] * v[row, j, channels] for w, j in zip(weights, keys, strict=True))
    return model.out(out.flatten(0, 1)).view_as(x).movedim(2, -1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_attention_equals_every_pair_through_the_network(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(3)
    model = Attention(replace(Config(), attention=kind)).to(dtype)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 9, 9, 8, dtype=dtype)
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    torch.testing.assert_close(model(x, valid), plain_attention(model, x, valid), rtol=tolerance, atol=tolerance)


def test_linear_attention_is_the_same_for_every_position_and_mlp_is_not() -> None:
    torch.manual_seed(3)
    x, valid = torch.randn(1, 5, 9, 9, 8), torch.ones(1, 5, dtype=torch.bool)
    linear = Attention(Config())(x, valid)
    assert (linear - linear[:, :1]).abs().max() < 1e-6
    mlp = Attention(replace(Config(), attention="mlp"))(x, valid)
    assert (mlp - mlp[:, :1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_padding_changes_nothing_in_the_stream_variant(kind: str) -> None:
    model = lively(replace(Config(), attention=kind))  # type: ignore[arg-type]
    narrow, wide = batch([7], width=3), batch([7], width=11)
    wide["pixels"][:, :3], wide["bands"][:, :3], wide["days"][:, :3] = (
        narrow["pixels"], narrow["bands"], narrow["days"],
    )  # fmt: skip
    torch.testing.assert_close(model(wide), model(narrow), rtol=1e-5, atol=1e-5)


def test_padding_reaches_the_answer_of_the_paper_variant() -> None:
    model = lively(PUBLISHED)
    given = batch([30, 7], width=33)
    tokens = model.tokens(given["pixels"], given["bands"], given["valid"])
    ids = convention.published_bands(given["bands"])
    every = model.features(given["pixels"].flatten(0, 1), ids.flatten(0, 1)).view_as(tokens)
    torch.testing.assert_close(tokens, every, rtol=1e-5, atol=1e-6)
    blank = tokens * given["valid"][:, :, None, None, None]
    answers = [model.logits(t, None, given["days"], given["present"]) for t in (tokens, blank)]
    assert (answers[0] - answers[1]).abs().max() > 1e-4


def test_a_full_token_depends_on_its_three_stamps_only() -> None:
    model = lively(Config())
    given = batch([9, 9])
    tokens = model.features(given["pixels"].flatten(0, 1), given["bands"].flatten(0, 1))
    alone = model.features(given["pixels"][1, 2:3], given["bands"][1, 2:3])
    torch.testing.assert_close(tokens[5:6], alone, rtol=1e-5, atol=1e-5)


def test_time_and_order_matter_in_the_stream_variant() -> None:
    model = lively(Config())
    given = batch([9])
    later = {**given, "days": given["days"] * 30}
    assert (model(given) - model(later)).abs().max() > 1e-5
    turned = {**given, "pixels": given["pixels"].flip(1)}
    assert (model(given) - model(turned)).abs().max() > 1e-5


@pytest.mark.parametrize("embedding", ["fixed", "none"])
def test_band_embedding_switches(embedding: str) -> None:
    config = replace(Config(), band_embedding=embedding)  # type: ignore[arg-type]
    model = lively(config)
    given = batch([6])
    other = {**given, "bands": given["bands"] % 5 + 1}
    change = (model(given) - model(other)).abs().max()
    assert change == 0 if embedding == "none" else change > 1e-6
    assert embedding != "fixed" or not model.features.embedding.weight.requires_grad


def test_operations_of_a_group_and_a_sequence() -> None:
    group = counts.operations(Config())
    assert group["fast"] == pytest.approx(0.275e9, rel=0.02)
    assert group["plain"] == pytest.approx(0.63e9, rel=0.02)
    sequence = counts.sequence_operations(Config())
    assert 0.9 < 33 * group["plain"] / sequence["plain"] < 1
    assert 0.97 < 33 * group["fast"] / sequence["fast"] < 1


def test_the_description_counts_what_the_model_has() -> None:
    found = model_list.description("convention-paper")
    assert found["parameters"] == 1_253_108
    assert found["dead_parameters"] == 168
    assert found["multiply_adds"]["group"] == counts.operations(Config())
