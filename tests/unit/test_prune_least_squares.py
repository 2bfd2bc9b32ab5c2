"""Least squares and Levenberg-Marquardt against autograd, brute force and textbook solutions."""

from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from tasks.prune.repair import feed_forward
from tasks.prune.repair.feed_forward import LARGEST_STEP, FeedForward, StreamFit
from tasks.prune.repair.gauss_newton import Parameters, minimise
from tasks.prune.repair.least_squares import Affine, Inputs, eliminate
from tasks.prune.repair.readout import Readout


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
def test_refit_is_the_weighted_ridge_solution(bias: bool) -> None:
    x, target, weight = random(50, 6), random(50, 4), torch.rand(50, dtype=torch.float64)
    start = Affine(random(4, 6), random(4) if bias else None)
    got = Inputs(x, weight, ridge=0.1).refit(start, target)
    penalty = 0.1 * float((weight[:, None] * x.square()).sum(0).mean())
    inputs = torch.cat([x, torch.ones(50, 1)], 1) if bias else x
    first = torch.cat([start.weight_OI, start.bias_O[:, None]], 1) if bias else start.weight_OI
    root = weight.sqrt()[:, None]
    augmented = torch.cat([root * inputs, penalty**0.5 * torch.eye(inputs.shape[1])])
    wanted = torch.cat([root * target, penalty**0.5 * first.T])
    solution = torch.linalg.lstsq(augmented, wanted).solution.T
    torch.testing.assert_close(got.weight_OI, solution[:, :6])
    if bias:
        torch.testing.assert_close(got.bias_O, solution[:, 6])


def test_refit_finds_weights_that_fit_exactly() -> None:
    x, planted = random(80, 6), Affine(random(4, 6), random(4))
    start = Affine(torch.zeros(4, 6).double(), torch.zeros(4).double())
    got = Inputs(x, torch.ones(80).double(), ridge=1e-12).refit(start, planted(x))
    torch.testing.assert_close(got.weight_OI, planted.weight_OI)
    torch.testing.assert_close(got.bias_O, planted.bias_O)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    start = Affine(random(4, 6), None)
    got = Inputs(torch.zeros(9, 6).double(), torch.ones(9).double()).refit(start, random(9, 4))
    torch.testing.assert_close(got.weight_OI, start.weight_OI)


@pytest.mark.parametrize("width", [1, 2])
def test_elimination_removes_first_what_least_squares_misses_least(width: int) -> None:
    x, y = random(60, 5 * width) @ random(5 * width, 5 * width), random(60, 3)
    importance = eliminate(x.T @ x, x.T @ y, width)

    def error_without(units: tuple[int, ...]) -> float:
        kept = [c for c in range(5 * width) if c // width not in units]
        part = x[:, kept]
        return float((y - part @ torch.linalg.lstsq(part, y).solution).square().sum())

    order = importance.argsort().tolist()
    gone: tuple[int, ...] = ()
    for unit in order[:4]:
        rest = [u for u in range(5) if u not in gone]
        assert unit == min(rest, key=lambda u: error_without((*gone, u)))
        gone = (*gone, unit)
    pairs = {pair: error_without(pair) for pair in combinations(range(5), 2)}
    assert error_without(tuple(order[:2])) <= sorted(pairs.values())[2]


def test_a_unit_that_another_can_stand_in_for_goes_first() -> None:
    x = random(60, 3)
    x = torch.cat([x, x[:, :1]], 1)  # the strongest unit, twice
    weight = torch.tensor([[9.0], [1.0], [1.0], [9.0]], dtype=torch.float64)
    importance = eliminate(x.T @ x, x.T @ (x @ weight), 1)
    assert int(importance.argmin()) in (0, 3)
    assert int(importance.argmax()) in (0, 3)


def make_sublayer(gated: bool, bias: bool) -> FeedForward:
    def layer(out: int, into: int) -> Affine:
        return Affine(random(out, into), random(out) if bias else None)

    if gated:
        return FeedForward([layer(7, 5), layer(7, 5)], layer(4, 7), lambda a, b: F.silu(a) * b)
    return FeedForward([layer(7, 5)], layer(4, 7), F.gelu)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_jacobian_is_autograds(gated: bool, bias: bool) -> None:
    sublayer, x = make_sublayer(gated, bias), random(9, 5)
    parameters = sublayer.parameters()
    jacobian = sublayer.linearise(x)
    direction = [torch.randn_like(p) for p in parameters]

    def outputs(*p: torch.Tensor) -> torch.Tensor:
        return sublayer.with_parameters(list(p))(x)

    wanted, pushed, *_ = torch.func.jvp(outputs, tuple(parameters), tuple(direction))
    torch.testing.assert_close(jacobian.outputs(), wanted)
    torch.testing.assert_close(jacobian.forward(direction), pushed)
    v = random(9, 4)
    _, pull, *_ = torch.func.vjp(outputs, *parameters)
    torch.testing.assert_close(jacobian.transposed(v), list(pull(v)))

    weight = torch.rand(9, dtype=torch.float64)
    full = torch.func.jacrev(outputs, argnums=tuple(range(len(parameters))))(*parameters)
    for diagonal, part in zip(jacobian.diagonal(weight), full, strict=True):
        torch.testing.assert_close(diagonal, torch.einsum("t,tdoi->oi", weight, part.square()))


@pytest.mark.parametrize("gated", [False, True])
def test_levenberg_marquardt_recovers_a_planted_sublayer(gated: bool) -> None:
    planted, x = make_sublayer(gated, True), random(200, 5)
    fit = StreamFit(x, planted(x), torch.ones(200, dtype=torch.float64))
    start = planted.with_parameters([p + 0.1 * torch.randn_like(p) for p in planted.parameters()])
    losses = [fit.loss(minimise(fit, fit, start, steps)) for steps in (0, 2, 20)]
    assert losses[1] < 0.2 * losses[0]
    assert losses[2] < 1e-4 * losses[0]


def make_readout(sublayer: FeedForward, num_tokens: int) -> Readout:
    x, before = random(num_tokens, 5), random(num_tokens, 4)
    norm = torch.nn.RMSNorm(4, dtype=torch.float64).requires_grad_(False)
    head = Affine(random(11, 4), random(11))
    return Readout(x, before, random(num_tokens, 4), norm, head)


def test_the_readouts_loss_gradient_and_curvature_are_those_of_the_kl(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_forward, "CURVATURE_TOKENS", 1)
    sublayer = make_sublayer(True, True)
    readout = make_readout(sublayer, 3 * LARGEST_STEP)
    parameters = sublayer.parameters()

    def logits(*p: torch.Tensor) -> torch.Tensor:
        after = readout.before_TD + sublayer.with_parameters(list(p))(readout.x_TI)
        return readout.head(readout.norm(after))

    def kl(*p: torch.Tensor) -> torch.Tensor:
        dense = readout.head(readout.norm(readout.dense_TD)).log_softmax(-1)
        return F.kl_div(logits(*p).log_softmax(-1), dense, reduction="batchmean", log_target=True)

    def close(got: Parameters, wanted: Parameters) -> None:
        for a, b in zip(got, wanted, strict=True):  # log-probabilities are fp32
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    around = readout.linearise(sublayer)
    assert readout.loss(sublayer) == pytest.approx(float(kl(*parameters)), rel=1e-5)
    numbers = tuple(range(len(parameters)))
    close(around.gradient, list(torch.func.grad(kl, argnums=numbers)(*parameters)))

    direction = [torch.randn_like(p) for p in parameters]
    _, pushed, *_ = torch.func.jvp(logits, tuple(parameters), tuple(direction))
    q = logits(*parameters).softmax(-1)
    curved = q * (pushed - (q * pushed).sum(-1, keepdim=True))
    some = torch.zeros(len(q), 1, dtype=torch.float64)
    some[::LARGEST_STEP] = LARGEST_STEP / len(q)
    _, pull, *_ = torch.func.vjp(logits, *parameters)
    close(around.curvature(direction), list(pull(some * curved)))


def test_the_readout_comes_nearer_to_the_dense_distribution() -> None:
    sublayer = make_sublayer(True, False)
    readout = make_readout(sublayer, 200)
    assert readout.loss(minimise(readout, readout, sublayer, 5)) < 0.8 * readout.loss(sublayer)


def test_a_step_goes_no_further_than_other_data_bears_out() -> None:
    planted, x = make_sublayer(True, True), random(40, 5)
    noisy = planted(x) + 3 * random(40, 4)
    fit = StreamFit(x[:20], noisy[:20], torch.ones(20, dtype=torch.float64))
    check = StreamFit(x[20:], noisy[20:], torch.ones(20, dtype=torch.float64))
    checked = minimise(fit, check, planted, 10)
    assert check.loss(checked) <= check.loss(planted) < check.loss(minimise(fit, fit, planted, 10))
