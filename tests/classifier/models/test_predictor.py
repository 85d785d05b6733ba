"""The serving path against the plain model, with and without cached tokens, alone and in company."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_tools import SCALING, info, lively, sequence, write
from numpy.typing import NDArray
from torch.nn import functional

from skyheed.classifier import serving as module
from skyheed.classifier.errors import ModelError
from skyheed.classifier.history import History
from skyheed.classifier.models.convention.fast import CudaTokens, FoldedFeatures, folded, with_exact_biases
from skyheed.classifier.models.convention.groups import GROUP
from skyheed.classifier.models.convention.network import Config
from skyheed.classifier.models.convention.predictor import TOGETHER, Predictor
from skyheed.classifier.prediction import Declined, Prediction, Status
from skyheed.classifier.serving import Served, choose, load, load_network, native_bfloat16
from skyheed.classifier.sky import simulate
from skyheed.classifier.training import dataset


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Predictor:
    return load(checkpoint, survey="sdss", precision="float32", threads=1)


@pytest.fixture(scope="module")
def rounded(checkpoint: Path) -> Predictor:
    return load(checkpoint, survey="sdss", precision="bfloat16", threads=1)


def plain_answer(given: History) -> NDArray[np.float64]:
    """One sequence through the model as it is written down: Conv3d, no folding, no padding, double precision."""
    model = lively(Config()).double()
    n = -(-len(given) // GROUP)
    pixels, bands = np.zeros((3 * n, 32, 32)), np.zeros(3 * n, np.int64)
    softening = np.array(SCALING.softening)[given.band]
    pixels[: len(given.mjd)] = (
        np.arcsinh(given.images["science"].astype(float) / softening[:, None, None]) * SCALING.gain
    )
    bands[: len(given.mjd)] = given.band + 1
    days = np.zeros(3 * n)
    days[: len(given.mjd)] = given.mjd - given.mjd[0]
    present = torch.arange(3 * n) < len(given.mjd)
    x = model.features.images(torch.from_numpy(pixels).view(n, 3, 32, 32), torch.from_numpy(bands).view(n, 3))
    x = x.transpose(1, 2)
    for i in (1, 2, 3, 4):
        x = functional.relu(getattr(model.features, f"norm{i}")(getattr(model.features, f"conv{i}")(x)))
    logits = model.logits(
        x.view(1, n, 8, 9, 9), torch.ones(1, n, dtype=torch.bool),
        torch.from_numpy(days).view(1, n, 3), present.view(1, n, 3),
    )  # fmt: skip
    temperature = np.interp(np.log(len(given.mjd)), np.log([1, 10]), [1.2, 0.8])
    p = np.exp(logits.detach().numpy()[0] / temperature) * [2, 1, 0.5, 0.5]
    return p / p.sum()  # type: ignore[no-any-return]


def answer(predictor: Predictor, *sequences: History) -> NDArray[np.float32]:
    return np.array([a.probabilities for a in predictor.classify(sequences)])


def cached(whole: History, known: Prediction, groups: set[int]) -> History:
    """The same sequence with some groups replaced by their tokens, as the store hands it out."""
    kept = np.array([step // GROUP not in groups for step in range(len(whole.mjd))])
    return History.of_stamps(
        whole.mjd, whole.band, whole.images["science"][kept], {g: known.keep[g] for g in groups}, GROUP
    )


@pytest.mark.parametrize("stamps", [1, 2, 3, 4, 10, 33, 98, 99])
def test_the_fast_path_answers_as_the_plain_model(served: Predictor, stamps: int) -> None:
    given_ = sequence(stamps)
    np.testing.assert_allclose(answer(served, given_)[0], plain_answer(given_), atol=1e-5)


def test_every_length_gives_probabilities(served: Predictor) -> None:
    p = answer(served, *(sequence(n) for n in range(1, 100, 2)))
    assert p.shape == (50, 4)
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert p.argmax(1).std() > 0 or np.ptp(p) > 0.05  # they are not all alike


def test_more_sequences_than_are_computed_at_once_keep_their_order(served: Predictor) -> None:
    batch = [sequence(3, seed=k) for k in range(2 * TOGETHER + 3)]
    alone = np.concatenate([answer(served, s) for s in batch])
    assert np.ptp(alone, axis=0).max() > 1e-3  # they can be told apart
    np.testing.assert_allclose(answer(served, *batch), alone, atol=1e-5)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    data=st.data(),
)
def test_company_and_cached_tokens_change_nothing(served: Predictor, lengths: list[int], data: st.DataObject) -> None:
    batch = [sequence(n, seed=i) for i, n in enumerate(lengths)]
    alone = np.concatenate([answer(served, s) for s in batch])
    together = served.classify(batch)
    np.testing.assert_allclose([a.probabilities for a in together], alone, atol=1e-5)
    partly = []
    for whole, known in zip(batch, together, strict=True):
        assert sorted(known.keep) == list(range(len(whole.mjd) // GROUP))
        groups = data.draw(st.sets(st.sampled_from(sorted(known.keep)))) if known.keep else set()
        partly.append(cached(whole, known, groups))
    again = served.classify(partly)
    np.testing.assert_allclose([a.probabilities for a in again], alone, atol=1e-5)
    for part, found, whole in zip(partly, again, batch, strict=True):
        assert sorted([*found.keep, *part.kept]) == list(range(len(whole.mjd) // GROUP))


@pytest.mark.parametrize("name", ["served", "rounded"])
def test_a_token_that_was_kept_is_bit_for_bit_the_one_that_is_computed(
    name: str, request: pytest.FixtureRequest
) -> None:
    predictor = request.getfixturevalue(name)
    whole = sequence(30)
    known = predictor.classify([whole])[0]
    kept = Prediction(known.probabilities, keep=known.keep)
    full = set(range(10))
    for groups in (full, full - {9}, {0, 5}):
        for company in ([], [sequence(7), sequence(50)]):
            found = predictor.classify([cached(whole, kept, groups), *company])[0]
            assert all(found.keep[g] == known.keep[g] for g in found.keep)
            np.testing.assert_allclose(found.probabilities, known.probabilities, atol=1e-6)


def test_growing_sequences_one_stamp_at_a_time(served: Predictor) -> None:
    whole, tokens = sequence(14), {}  # type: ignore[var-annotated]
    for n in range(1, 15):
        kept = np.array([step // GROUP not in tokens for step in range(n)])
        now = History.of_stamps(whole.mjd[:n], whole.band[:n], whole.images["science"][:n][kept], dict(tokens), GROUP)
        found = served.classify([now])[0]
        assert len(found.keep) == (n % GROUP == 0)
        tokens |= found.keep
        fresh = whole.until(epochs=n)
        np.testing.assert_allclose(found.probabilities, answer(served, fresh)[0], atol=1e-5)


def test_bfloat16_is_close_to_float32(served: Predictor, rounded: Predictor) -> None:
    batch = [sequence(n, seed=n) for n in range(1, 61, 2)]
    exact, near = answer(served, *batch), answer(rounded, *batch)
    # this model's weights are random and its answers sharper than those of trained ones
    assert np.abs(exact - near).max() < 0.03
    sure = np.sort(exact)[:, -1] - np.sort(exact)[:, -2] > 0.06
    assert (exact.argmax(1) == near.argmax(1))[sure].all()
    assert rounded.token_dtype == np.float16
    assert rounded.kept_as != served.kept_as


def test_bfloat16_of_the_served_weights(tmp_path: Path) -> None:
    data = dataset.load(simulate("sdss", 32, 77, tmp_path / "sky", balanced=True, processes=1, progress=False))
    batch = [data.history(i, 0, n) for i in range(32) for n in (1, 2, 3, 5, 8, 13, 20) if n <= data.length(i)]
    exact, near = (answer(load("sdss", survey="sdss", precision=p), *batch) for p in ("float32", "bfloat16"))
    assert len(batch) > 150
    assert np.abs(exact - near).max() <= 0.005
    assert (exact.argmax(1) == near.argmax(1)).mean() >= 0.999


def test_exact_biases_change_no_function() -> None:
    features = lively(Config()).double().features
    pairs = [folded(getattr(features, f"conv{i}"), getattr(features, f"norm{i}")) for i in (1, 2, 3, 4)]
    x = y = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)
    for layer, (plain, exact) in enumerate(zip(pairs, with_exact_biases(pairs), strict=True)):
        conv = getattr(features, f"conv{layer + 1}")
        x, y = (
            functional.relu(functional.conv3d(z, *part, stride=conv.stride, padding=conv.padding))
            for z, part in ((x, plain), (y, exact))
        )
        if layer < 3:
            for multiple in (1, 2, 3):
                bias = multiple * exact[1].float()
                assert bias.bfloat16().float().equal(bias)
    assert x.abs().max() > 0.1
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-9)


def test_folded_features_in_double_precision() -> None:
    model = lively(Config()).double()
    folded = FoldedFeatures(model, torch.float64)
    pixels, bands = torch.randn(5, 3, 32, 32, dtype=torch.float64), torch.randint(0, 6, (5, 3))
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels, bands), model.features(pixels, bands), rtol=1e-12, atol=1e-12)


def test_other_surveys_are_refused_unless_told_otherwise(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="trained for sdss, not for ztf"):
        load(checkpoint, survey="ztf")
    assert load(checkpoint, survey="ztf", any_survey=True, precision="float32").info.surveys == ("sdss",)


def test_unknown_bands_are_refused(served: Predictor) -> None:
    given_ = sequence(4)
    given_.band[2] = 5
    with pytest.raises(ModelError, match=r"knows bands ugriz, not y: leave"):
        served.classify([given_])


def test_another_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"preprocessing stamp-0.*train it again"):
        load(write(tmp_path, preprocessing="stamp-0"), survey="sdss")


def test_the_published_variant_is_served_whole(tmp_path: Path) -> None:
    config = Config(variant="paper", time="position")
    model = load(write(tmp_path, config), survey="sdss")
    assert model.kept_as == ""
    assert type(model) is Served
    (found,) = model.predict([sequence(7)])
    assert not found.keep
    np.testing.assert_allclose(found.probabilities.sum(), 1, atol=1e-6)


def test_the_two_dimensional_form_keeps_a_token_a_stamp_and_answers_from_the_first(tmp_path: Path) -> None:
    config = Config(cnn="2d")
    folder = write(tmp_path, config)
    model = load(folder, survey="sdss", precision="float32")
    assert (model.needs.span, model.needs.fewest) == (1, 1)
    plain = Served(load_network(folder, model.info), model.info, choose("cpu", "float32"))
    whole, kept = sequence(9), {}  # type: ignore[var-annotated]
    for n in range(1, 10):
        shown = np.array([step for step in range(n) if step not in kept])
        now = whole.until(epochs=n)
        now = replace(now, images={"science": now.images["science"][shown]}, shown=shown, kept=dict(kept))
        found = model.predict([now])[0]
        assert sorted(found.keep) == [n - 1]
        kept |= found.keep
        exact = plain.predict([whole.until(epochs=n)])[0]
        np.testing.assert_allclose(found.probabilities, exact.probabilities, atol=1e-5)


def test_too_few_epochs_and_unknown_bands_are_declined(served: Predictor) -> None:
    short, strange = sequence(2), replace(sequence(5), band=np.full(5, 5, np.uint8))
    reasons = [p.reason for p in served.predict([short, sequence(5), strange])]
    assert reasons == [Declined.TOO_FEW_STAMPS, None, Declined.BANDS_UNKNOWN]
    declined = served.predict([short])[0]
    assert declined.status is Status.NOT_CLASSIFIED
    assert len(declined.probabilities) == 0


def test_probabilities_that_are_no_numbers_are_declined(tmp_path: Path) -> None:
    model = load(write(tmp_path), survey="sdss", precision="float32")
    with torch.no_grad():
        model.network.head[4].bias.fill_(torch.nan)  # type: ignore[attr-defined]
    assert [p.reason for p in model.predict([sequence(5)])] == [Declined.NOT_FINITE]


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from skyheed.classifier.models import checkpoint as checkpoints

    checkpoints.save(tmp_path, lively(Config()).state_dict(), info(Config(layers=3)))
    with pytest.raises(ModelError, match="do not fit its configuration") as error:
        load(tmp_path, survey="sdss")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda s: History.of_stamps(s.mjd, s.band, s.images["science"][:-1]), "shape"),
        (lambda s: History.of_stamps(s.mjd[:0], s.band[:0], s.images["science"][:0]), "1 to 99"),
        (lambda s: History.of_stamps(s.mjd, s.band, s.images["science"][:3], {1: b"token"}, GROUP), "full group"),
    ],
)
def test_parts_that_do_not_fit_are_refused(served: Predictor, cut: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        served.classify([cut(sequence(5))])  # type: ignore[operator]


def test_nothing_in_nothing_out(served: Predictor) -> None:
    assert served.classify([]) == []


def test_warm_up_needs_no_data(served: Predictor) -> None:
    served.warm_up()


def test_precision_follows_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "CPU_INFO", flags)
    flags.write_text("model name : x\nflags : sse avx512f avx512_bf16\n")
    assert native_bfloat16() == "avx512_bf16"
    assert choose("cpu", "auto").precision == "bfloat16"
    assert "avx512_bf16" in choose("cpu", "auto").chosen
    flags.write_text("model name : bf16 maker\nflags : sse avx512f avx512_vnni\n")
    assert choose("cpu", "auto").precision == "float32"
    assert "no native bfloat16" in choose("cpu", "auto").chosen
    assert choose("cpu", "bfloat16").precision == "bfloat16"
    flags.unlink()
    assert choose("cpu", "auto").precision == "float32"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="torch sees no GPU"):
        choose("cuda", "auto")
    assert choose("auto", "float32").device.type == "cpu"
    with pytest.raises(ModelError, match="not possible"):
        choose("tpu", "auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_answers_as_the_cpu(checkpoint: Path, served: Predictor) -> None:
    batch = [sequence(n, seed=n) for n in (1, 2, 3, 50, 99, 99, 30)]
    exact = answer(served, *batch)
    single = load(checkpoint, survey="sdss", device="cuda", precision="float32")
    np.testing.assert_allclose(answer(single, *batch), exact, atol=1e-3)  # TF32 is off; kernels differ
    fast = load(checkpoint, survey="sdss", device="cuda")
    assert fast.precision == "bfloat16"
    assert np.abs(answer(fast, *batch) - exact).max() < 0.03
    features = FoldedFeatures(lively(Config()), torch.float32).cuda()
    many = np.random.default_rng(0).normal(size=(3000, 3, 32, 32)).astype(np.float32)
    ids = np.ones((3000, 3), np.int64)
    tokens = CudaTokens(features, torch.device("cuda"))(many, ids)
    some = features(torch.from_numpy(many[2990:]).cuda(), torch.from_numpy(ids[2990:]).cuda()).cpu().numpy()
    np.testing.assert_allclose(tokens[2990:], some, atol=1e-4)
