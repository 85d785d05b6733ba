"""Encoders of a stamp: dual attention, shifted windows, and the masked auto-encoder, against plain forms."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from skyheed.classifier.models.attention import Block, sinusoids
from skyheed.classifier.models.base import parameters
from skyheed.classifier.models.encoders import DualAttention, PhysNet
from skyheed.classifier.models.mae import MaskedAutoencoder
from skyheed.classifier.models.transformers import Swin, Vit, WindowBlock, unwindowed, windows


def test_dual_attention_that_knows_nothing_halves_and_adds_half() -> None:
    attention = DualAttention(32).eval()
    for parameter in (*attention.excite.parameters(), *attention.place.parameters()):
        parameter.data.zero_()
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(attention(x), x * 0.5 * 1.5)


def test_the_factors_of_dual_attention_stay_in_their_ranges() -> None:
    by_channel, by_place = DualAttention(16).eval().factors(torch.randn(4, 16, 8, 8))
    assert by_channel.shape == (4, 16, 1, 1)
    assert by_place.shape == (4, 1, 8, 8)
    assert ((by_channel > 0) & (by_channel < 1)).all()
    assert ((by_place > 1) & (by_place < 2)).all()


def test_gradients_pass_through_the_whole_backbone() -> None:
    torch.manual_seed(0)
    network = PhysNet(1)
    network(torch.randn(4, 1, 32, 32), torch.zeros(4, dtype=torch.int64)).square().sum().backward()
    kernels = {n: p.grad for n, p in network.named_parameters() if p.dim() == 4}
    assert len(kernels) == 1 + 2 * 9 + 2 + 2 * 3 + 1
    assert all(g is not None and g.abs().sum() > 0 for g in kernels.values())


def test_windows_are_cut_and_put_together_again() -> None:
    x = torch.arange(2 * 8 * 8 * 3.0).view(2, 8, 8, 3)
    cut = windows(x, 4)
    assert cut.shape == (8, 16, 3)
    assert torch.equal(cut[1].view(4, 4, 3), x[0, :4, 4:])
    assert torch.equal(unwindowed(cut, 8, 4), x)


def plain_attention(block: WindowBlock, tokens: Tensor, region: Tensor) -> Tensor:
    """Attention weights [heads, 16, 16] in one window, written out."""
    q, k, _ = block.block.project(tokens[None])
    out = torch.empty(q.shape[1], 16, 16)
    for head in range(len(out)):
        for i in range(16):
            logits = torch.full((16,), float("-inf"))
            for j in range(16):
                if region[i] == region[j]:
                    place = (i // 4 - j // 4 + 3) * 7 + i % 4 - j % 4 + 3
                    logits[j] = q[0, head, i] @ k[0, head, j] / q.shape[3] ** 0.5 + block.bias[place, head]
            out[head, i] = logits.softmax(0)
    return out


@pytest.mark.parametrize("shift", [0, 2])
def test_tokens_of_other_regions_are_not_seen_at_all(shift: int) -> None:
    torch.manual_seed(0)
    block = WindowBlock(8, 2, 8, shift).eval()
    block.bias.data.normal_()
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        weights = block.weights(x)
        # where a token stood before the map was rolled: neighbours in the sky have no jump between them
        where = torch.arange(8).roll(-shift)
        jumped = (where < shift).long() if shift else torch.zeros(8, dtype=torch.int64)
        region = windows((2 * jumped[:, None] + jumped)[None, :, :, None].float(), 4)[..., 0]
        rolled = windows(x.roll((-shift, -shift), (1, 2)), 4)
        for n in range(4):
            torch.testing.assert_close(weights[n], plain_attention(block, rolled[n], region[n]), rtol=1e-4, atol=1e-6)
    other = region[:, :, None] != region[:, None]
    assert bool(other.any()) == bool(shift)
    assert (weights.transpose(0, 1)[:, other] == 0).all()


def test_a_shifted_block_without_attention_leaves_the_map_in_place() -> None:
    block = WindowBlock(8, 2, 8, 2)
    for module in (block.block.out, block.block.down):
        module.weight.data.zero_()
        module.bias.data.zero_()
    x = torch.randn(3, 8, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_a_block_is_the_textbook_attention() -> None:
    torch.manual_seed(0)
    block = Block(8, 2).eval()
    x = torch.randn(2, 5, 8)
    q, k, v = (t.reshape(2, 5, 2, 4) for t in block.qkv(block.norm1(x)).chunk(3, 2))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) / 2
    logits = logits.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    attended = torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).reshape(2, 5, 8)
    y = x + block.out(attended)
    y = y + block.down(functional.gelu(block.up(block.norm2(y))))
    torch.testing.assert_close(block(x, causal=True), y, rtol=1e-5, atol=1e-5)


def test_sinusoids_tell_places_apart() -> None:
    table = sinusoids(torch.arange(400.0), 32)
    assert table.shape == (400, 32)
    assert torch.pdist(table).min() > 0.1
    assert table[0].tolist() == [0.0] * 16 + [1.0] * 16


def autoencoder(target: str = "pixels") -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(Vit(1), target)  # type: ignore[arg-type]


def test_the_masked_autoencoder_is_as_large_as_said() -> None:
    assert parameters(autoencoder()) == 109_456
    assert parameters(autoencoder()) + parameters(Vit(1)) == 905_104
    assert parameters(Swin(2)) == 134_892


def test_three_quarters_of_the_patches_are_hidden_and_each_is_in_one_place() -> None:
    made = autoencoder()
    order = made.order(torch.arange(200))
    assert made.shown == 16
    assert (order.sort(1).values == torch.arange(64)).all()
    assert torch.equal(order.gather(1, order.argsort(1)), torch.arange(64).expand(200, -1))
    counts = torch.bincount(order[:, :16].flatten(), minlength=64)
    assert counts.min() > 20
    tubes = made.order(torch.tensor([4, 0, 4, 0, 7]))
    assert torch.equal(tubes[0], tubes[2])
    assert torch.equal(tubes[1], tubes[3])
    assert not torch.equal(tubes[2], tubes[3])
    assert not torch.equal(tubes[0], tubes[4])


def test_nothing_of_hidden_pixels_reaches_the_encoder() -> None:
    made = autoencoder()
    images = torch.randn(2, 1, 32, 32, requires_grad=True)
    order = made.order(torch.arange(2))
    made.latent(images, order).square().sum().backward()
    assert images.grad is not None
    seen = windows(images.grad.permute(0, 2, 3, 1), 4).view(2, 64, 16).abs().sum(2)
    for row in range(2):
        assert (seen[row, order[row, :16]] > 0).all()
        assert (seen[row, order[row, 16:]] == 0).all()


@pytest.mark.parametrize("target", ["pixels", "signal", "normalised"])
def test_only_hidden_patches_are_the_target(target: str) -> None:
    made = autoencoder(target)
    images, order = torch.randn(3, 1, 32, 32), made.order(torch.arange(3))
    wanted, weights = made.targets(images)
    found = made.reconstruct(made.latent(images, order), order)
    error = (found - wanted).square().mean(2)
    hidden = order[:, 16:]
    expected = (error.gather(1, hidden) * weights.gather(1, hidden)).sum() / weights.gather(1, hidden).sum()
    torch.testing.assert_close(made(images, order), expected)


def test_normalised_patches_have_variance_one_and_signal_outweighs_sky() -> None:
    images = 0.3 * torch.randn(2, 1, 32, 32)
    images[:, :, 14:18, 14:18] += 5
    wanted, _ = autoencoder("normalised").targets(images)
    torch.testing.assert_close(wanted.var(2), torch.ones(2, 64), rtol=1e-3, atol=1e-3)
    _, weights = autoencoder("signal").targets(images)
    assert weights.median() == pytest.approx(1, abs=0.2)
    assert (weights.max(1).values > 5).all()


def test_an_even_image_is_learnt_in_a_few_steps() -> None:
    made = autoencoder()
    images = torch.full((4, 1, 32, 32), 0.5)
    optimiser = torch.optim.AdamW([*made.parameters(), *made.encoder.parameters()], 2e-3)
    for _ in range(60):
        loss = made(images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1e-3
