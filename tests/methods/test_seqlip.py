"""SeqLip: the order of the bounds, exact pairs against brute force, branches, pools, certificates and their enemies."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from lipcert.capture.torch_export import capture
from lipcert.certificates.base import Witness
from lipcert.certificates.bound import check
from lipcert.certificates.chains import FactoredChain, needed_chains
from lipcert.certificates.norms.operator_norm import map_norm
from lipcert.certificates.vertex_enumeration import Pair
from lipcert.errors import CertificateError, InputError, LipcertError, MethodError, NotProved, UnsupportedNormError
from lipcert.methods.autolip import AutoLip
from lipcert.methods.branch_and_bound import BranchAndBound
from lipcert.methods.liplt import LipLT
from lipcert.methods.lipsdp import LipSDP
from lipcert.methods.seqlip import CertifiedPairs, ExactPairs, RankKPairs, SeqLip
from lipcert.numerics.chance import Chance
from lipcert.problem import Problem
from tests.zoo import Concat, Residual, difference_quotients, linear_weights, mlp, random_network, vertex_maximum

DATA = Path(__file__).parents[1] / "data"
CERTIFIED, EXACT = SeqLip(), SeqLip(pairs=ExactPairs())


def bound(model: nn.Module, n: int, method: object = CERTIFIED, **options: object) -> lipcert.Bound:
    return lipcert.bound(model, torch.zeros(1, n), method=method, **options)  # type: ignore[arg-type]


def chain(matrices: list[np.ndarray], activation: nn.Module | None = None) -> nn.Module:
    layers: list[nn.Module] = []
    for matrix in matrices:
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
        layer.weight.data.copy_(torch.as_tensor(matrix, dtype=torch.float64))
        layers += [layer, activation or nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def trained(name: str) -> nn.Module:
    with np.load(DATA / f"{name}.npz") as data:
        return chain([data[key] for key in sorted(data.files) if key.startswith("W")])


def paper_pairs(weights: list[torch.Tensor], low: float, high: float) -> float:
    """Equation 8 of the paper, every pair by brute force, from numpy's singular value decomposition."""
    factors = []
    for i, weight in enumerate(weights):
        u, s, vh = np.linalg.svd(weight.numpy(), full_matrices=False)
        end = i in (0, len(weights) - 1)
        factors.append((u * (s if end else np.sqrt(s)), (s if end else np.sqrt(s))[:, None] * vh))
    value = 1.0
    for (a, _), (_, b) in itertools.pairwise(factors):
        value *= vertex_maximum([torch.tensor(a), torch.tensor(b)], low, high)
    return value


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.5, 1.0), (0.3, 1.0), (-1.0, 1.0)])
def test_order_on_chains(seed: int, low: float, high: float) -> None:
    activation = nn.LeakyReLU(low) if low else nn.ReLU()
    model = mlp((3, 5, 4, 4, 2), seed, lambda: activation)
    weights = linear_weights(model)
    truth = vertex_maximum(weights, low, high)
    attack = lipcert.lower_bound(model, torch.zeros(1, 3), budget=0.3).value
    exact, certified = bound(model, 3, EXACT).value, bound(model, 3).value
    product, sdp = bound(model, 3, AutoLip()).value, bound(model, 3, LipSDP()).value
    assert attack <= truth * (1 + 1e-9) <= exact * (1 + 2e-9)
    assert exact <= certified * (1 + 1e-9)
    assert exact == pytest.approx(paper_pairs(weights, low, high), rel=1e-7)
    assert certified <= product * (1 + 1e-9)
    assert sdp <= certified * (1 + 1e-3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.5, 1.0), (-1.0, 1.0)])
def test_one_exact_pair_is_the_vertex_maximum(seed: int, low: float, high: float) -> None:
    model = mlp((4, 9, 3), seed, lambda: nn.LeakyReLU(low))
    truth = vertex_maximum(linear_weights(model), low, high)
    value = bound(model, 4, EXACT).value
    assert truth <= value * (1 + 1e-14)
    assert value == pytest.approx(truth, rel=1e-9)


def test_slopes_that_differ_from_neuron_to_neuron() -> None:
    act = nn.PReLU(6).double()
    act.weight.data.copy_(torch.tensor([-0.5, 1.0, 0.0, 2.0, -1.0, 0.25]))
    model = nn.Sequential(mlp((3, 6), 1), act, mlp((6, 2), 2)).eval()
    low = torch.minimum(act.weight.data, torch.ones(6))
    high = torch.maximum(act.weight.data, torch.ones(6))
    first, last = linear_weights(model)
    best = 0.0
    for number in range(64):
        sigma = torch.where(torch.tensor([number >> j & 1 for j in range(6)]).bool(), high, low)
        best = max(best, float(torch.linalg.matrix_norm(last @ (sigma[:, None] * first), 2)))
    value = bound(model, 3, EXACT).value
    assert best <= value == pytest.approx(best, rel=1e-9)


def test_the_greedy_counterexample_is_bounded() -> None:
    model = chain([np.array([[-2, -2, 0], [1, 2, 2], [2, 1, -1]]), np.array([[1, 1, 0], [1, 0, 1]])])
    for method in (CERTIFIED, EXACT, SeqLip(pairs=BranchAndBound())):
        assert 4.0 <= bound(model, 3, method).value <= 4.0 * (1 + 1e-3)


def test_reference_networks() -> None:
    digits = bound(trained("digits_20x3"), 64)
    assert digits.guarantee == "rigorous"
    assert 51.0140 <= digits.value <= 51.0141 * (1 + 3e-4)
    mnist = bound(trained("mnist_64"), 784)
    assert 17.5924 <= mnist.value <= 17.5928 * (1 + 3e-4)


@pytest.mark.slow
def test_exact_pairs_of_twenty_neurons() -> None:
    assert bound(trained("digits_20x3"), 64, EXACT).value == pytest.approx(51.01406, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_rank_k_pairs_count_what_they_drop(k: int) -> None:
    for seed in range(2):
        model = mlp((3, 5, 4, 5, 2), seed)
        truth = vertex_maximum(linear_weights(model))
        value = bound(model, 3, SeqLip(pairs=RankKPairs(k=k))).value
        assert truth <= value <= bound(model, 3, AutoLip()).value * (1 + 1e-9)
        if k == 4:
            assert value == pytest.approx(bound(model, 3).value, rel=1e-3)


def test_rank_k_is_sharp_where_the_spectrum_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    middle = torch.randn(6, 2, generator=generator).double() @ torch.randn(2, 6, generator=generator).double()
    model = chain([np.eye(6), middle.numpy(), np.eye(6)])
    low = bound(model, 6, SeqLip(pairs=RankKPairs(k=2))).value
    assert vertex_maximum(linear_weights(model)) <= low
    assert low == pytest.approx(bound(model, 6, CERTIFIED).value, rel=1e-3)


def test_truncation_that_cannot_gain_is_left_alone() -> None:
    """A flat spectrum: what is discarded counts in full, so no pair is solved and the product of norms comes out."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(30, 30, generator=generator).double()).Q
    first, last = (torch.randn(*shape, generator=generator).double() for shape in ((30, 6), (2, 30)))
    for rank in (5, 28):
        for scale in (1e-180, 1.0, 1e200):
            model = chain([first.numpy() * scale, turn.numpy(), last.numpy()])
            found = bound(model, 6, SeqLip(pairs=RankKPairs(k=rank)))
            assert found.value == pytest.approx(bound(model, 6, AutoLip()).value, rel=1e-9)
            assert found.certificate.witness.settings["pairs"] == {}  # type: ignore[union-attr]
            assert found.breakdown[0].remark == "product of norms"


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(15))
def test_chains_without_certified_pairs_are_products_of_norms(seed: int) -> None:
    case = random_network(seed)
    product = lipcert.bound(case.model, case.example, "autolip").value
    for pools in ("factor", "through"):
        witness = lipcert.bound(case.model, case.example, SeqLip(pools=pools)).certificate.witness  # type: ignore
        empty = Witness("layer_pairs", witness.arrays, {**witness.settings, "rank": 3, "pairs": {}})
        problem = Problem(capture(case.model, case.example))
        assert check(problem, empty, "seqlip", Chance()).value == pytest.approx(product, rel=1e-9)


def test_residual_network_counts_its_skip() -> None:
    inner = mlp((3, 6, 3), 0)
    value = bound(Residual(inner), 3, EXACT).value
    assert value == pytest.approx(1.0 + bound(inner, 3, EXACT).value, rel=1e-9)
    assert value < bound(Residual(inner), 3, AutoLip()).value


def test_branches_are_bounded_one_by_one() -> None:
    left, right = mlp((3, 6, 2), 0), mlp((3, 5, 2), 1)
    a, b = bound(left, 3, EXACT).value, bound(right, 3, EXACT).value
    value = bound(Concat(left, right), 3, EXACT).value
    assert math.hypot(a, b) * 0.999 <= value <= (a + b) * (1 + 1e-9)


def test_pools_between_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
    ).double().eval()  # fmt: skip
    x = torch.zeros(1, 1, 10)
    low = lipcert.lower_bound(model, x, budget=1.0).value
    factor = lipcert.bound(model, x, method=SeqLip()).value
    through = lipcert.bound(model, x, method=SeqLip(pools="through")).value
    assert low <= min(factor, through)
    assert max(factor, through) <= lipcert.bound(model, x, method="autolip").value * (1 + 1e-9)
    with pytest.raises(MethodError, match="CertifiedPairs"):
        lipcert.bound(model, x, method=SeqLip(pools="through", pairs=ExactPairs()))


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", range(16))
def test_random_networks_stay_above_samples_and_below_autolip(seed: int) -> None:
    case = random_network(seed)
    pools = "through" if seed % 2 else "factor"
    try:
        value = lipcert.bound(case.model, case.example, method=SeqLip(pools=pools), budget=2.0).value
    except LipcertError as error:
        with pytest.raises(type(error)):
            lipcert.bound(case.model, case.example, method="autolip")
        return
    quotients, noise = difference_quotients(case.model, tuple(case.example.shape[1:]))
    assert bool((quotients <= value * (1 + 1e-9) + noise).all())
    assert value <= lipcert.bound(case.model, case.example, method="autolip").value * (1 + 2e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "seed", [5000, 5002, *(pytest.param(s, marks=pytest.mark.slow) for s in (5001, *range(5003, 5012)))]
)
def test_truncated_pairs_stay_above_the_attack_and_below_autolip(seed: int) -> None:
    case = random_network(seed)
    low = lipcert.lower_bound(case.model, case.example, budget=0.2).value
    product = lipcert.bound(case.model, case.example, method="autolip").value
    for k, pools in itertools.product((1, 2, 3), ("factor", "through")):
        method = SeqLip(pairs=RankKPairs(k=k), pools=pools)  # type: ignore[arg-type]
        try:
            value = lipcert.bound(case.model, case.example, method).value
        except MethodError:  # no layer has k singular values
            continue
        assert low <= value * (1 + 1e-9) <= product * (1 + 1e-8)


def awkward(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Networks that a wrong factor, claim or shortcut would show up on."""
    torch.manual_seed(0)
    if name == "odd stride":
        layers = [nn.Conv2d(1, 2, 3, stride=3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(2, 3, 2), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)).eval(), (1, 11, 14)
    model = mlp((4, 6, 6, 6, 3), 0, {"alpha = beta": lambda: nn.LeakyReLU(1.0)}.get(name, nn.ReLU))
    if name == "dead neurons":
        model[0].weight.data[2] = 0.0
        model[4].weight.data[:, 1] = 0.0
    elif name == "zero layer":
        model[2].weight.data.zero_()
    elif name == "flat, then nothing":
        u, _, vh = torch.linalg.svd(model[2].weight.data)
        model[2].weight.data = u * torch.tensor([1.0, 1.0, 1.0, 1e-9, 0.0, 0.0]) @ vh
    elif name == "small float32":
        model = model.float()
        for parameter in model.parameters():
            parameter.data.mul_(1e-6)
    return model.eval(), (4,)


@pytest.mark.few(2)
@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(
    "name", ["dead neurons", "alpha = beta", "zero layer", "flat, then nothing", "small float32", "odd stride"]
)
def test_awkward_networks(name: str, write: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = awkward(name)
    x = torch.zeros(1, *shape, dtype=next(model.parameters()).dtype)
    low = lipcert.lower_bound(model, x, budget=0.3).value
    product = lipcert.bound(model, x, "autolip").value
    if not write:
        monkeypatch.setattr("lipcert.certificates.chains.writable", lambda linear: False)
    for pairs, pools in itertools.product((CertifiedPairs(), RankKPairs(k=1), RankKPairs(k=3)), ("factor", "through")):
        value = lipcert.bound(model, x, SeqLip(pairs=pairs, pools=pools)).value  # type: ignore[arg-type]
        assert low * (1 - 1e-9) <= value <= product * (1 + 1e-6)


def test_factors_and_residuals_add_up() -> None:
    model = mlp((3, 7, 4, 6, 2), 3)
    (found,) = needed_chains(capture(model, torch.zeros(1, 3)), False).values()
    for rank in (None, 2):
        for linear, f in zip(found.maps, FactoredChain(found, rank).factors, strict=True):
            left = torch.eye(linear.out_size, dtype=torch.float64) if f.left is None else f.left.matrix()
            right = torch.eye(linear.in_size, dtype=torch.float64) if f.right is None else f.right.matrix()
            missing = linear.matrix() - left @ right
            own = 0.0 if f.residual is None else map_norm(f.residual, 2.0).value
            assert float(torch.linalg.matrix_norm(missing, 2)) <= own + 1e-15
            assert rank is not None or own < 1e-11


def test_pairs_do_not_show_their_activation() -> None:
    (found,) = needed_chains(capture(mlp((3, 4, 2), 0), torch.zeros(1, 3)), False).values()
    pair = FactoredChain(found, None).pair(0)
    assert pair is not None
    with pytest.raises(MethodError, match="slopes"):
        pair.network.forward(torch.zeros(1, *pair.network.in_shape, dtype=torch.float64))


@pytest.mark.parametrize("method", [CERTIFIED, EXACT, SeqLip(pairs=RankKPairs(k=2)), SeqLip(pairs=BranchAndBound())])
def test_certificate_round_trip_and_tampering(method: SeqLip, tmp_path: Path) -> None:
    model, other = mlp((3, 5, 4, 2), 0), mlp((3, 5, 4, 2), 1)
    found = bound(model, 3, method)
    path = tmp_path / "pairs.lipcert"
    found.save(path)
    assert lipcert.verify(path, model, torch.zeros(1, 3)).value == found.value
    with pytest.raises(CertificateError):
        lipcert.verify(path, other, torch.zeros(1, 3))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CertificateError):
        lipcert.verify(path, model, torch.zeros(1, 3))


def checked(model: nn.Module, witness: Witness) -> float:
    return check(Problem(capture(model, torch.zeros(1, 3))), witness, "seqlip", Chance()).value


def test_false_claims_prove_nothing() -> None:
    model = mlp((3, 5, 4, 2), 0)
    truth = vertex_maximum(linear_weights(model))
    witness = bound(model, 3, EXACT).certificate.witness  # type: ignore[union-attr]
    settings = dict(witness.settings)

    def changed(**new: object) -> Witness:
        return Witness("layer_pairs", witness.arrays, {**settings, **new})

    name, inner = next(iter(settings["pairs"].items()))
    for factor in (0.0, 0.5, 1 - 1e-9):
        claim = {**inner, "settings": {"value": inner["settings"]["value"] * factor}}
        with pytest.raises(NotProved, match="vertex"):
            checked(model, changed(pairs={**settings["pairs"], name: claim}))
    for value in (-1.0, math.nan, math.inf, "1", True, None):
        with pytest.raises(CertificateError):
            checked(model, changed(pairs={name: {**inner, "settings": {"value": value}}}))
    for kind in ("layer_product", "layer_pairs", "loop_transform", "nonsense", 3):
        with pytest.raises(CertificateError, match="do not bound a pair"):
            checked(model, changed(pairs={name: {**inner, "kind": kind}}))
    for wrong in ({"rank": 0}, {"rank": True}, {"rank": 1.5}, {"pools": "none"}, {"pairs": 3}, {"pairs": {name: 1}}):
        with pytest.raises(CertificateError):
            checked(model, changed(**wrong))
    assert checked(model, changed(pairs={})) >= truth  # no pairs: the product of norms


def test_false_multipliers_prove_nothing() -> None:
    model = mlp((3, 5, 4, 2), 0)
    truth = vertex_maximum(linear_weights(model))
    witness = bound(model, 3).certificate.witness  # type: ignore[union-attr]
    pairs = {k: {**v, "settings": {**v["settings"], "rho": [1e-3]}} for k, v in witness.settings["pairs"].items()}
    assert checked(model, Witness("layer_pairs", witness.arrays, {**witness.settings, "pairs": pairs})) >= truth
    for scale in (0.0, 0.3, -1.0, 1e6):
        arrays = {k: v * scale if "multipliers" in k else v for k, v in witness.arrays.items()}
        try:
            assert checked(model, Witness("layer_pairs", arrays, witness.settings)) >= truth
        except (CertificateError, NotProved):
            continue


def test_a_pair_certificate_for_another_rank_is_no_good() -> None:
    """Factors belong to a rank: what was found for others proves what it proves, never less than the truth."""
    model = mlp((3, 5, 4, 2), 0)
    truth = vertex_maximum(linear_weights(model))
    witness = bound(model, 3, EXACT).certificate.witness  # type: ignore[union-attr]
    for rank in (1, 2, 3, 4, 50):
        try:
            assert checked(model, Witness("layer_pairs", witness.arrays, {**witness.settings, "rank": rank})) >= truth
        except (CertificateError, NotProved):
            continue


def test_no_two_consecutive_linear_layers() -> None:
    found = bound(nn.Sequential(mlp((3, 4), 0), nn.ReLU()), 3)
    assert found.value == pytest.approx(bound(nn.Sequential(mlp((3, 4), 0), nn.ReLU()), 3, AutoLip()).value, rel=1e-9)
    assert "SeqLip = AutoLip" in found.breakdown[0].remark


def test_pairs_by_autolip_are_the_product_of_norms() -> None:
    model = mlp((4, 7, 5, 3), 0)
    value = bound(model, 4, SeqLip(pairs=AutoLip())).value
    assert value == pytest.approx(bound(model, 4, AutoLip()).value, rel=1e-9)


def test_bad_input() -> None:
    wide = mlp((4, 30, 3), 0)
    with pytest.raises(MethodError, match=r"30 neurons.*2\^30.*CertifiedPairs"):
        bound(wide, 4, EXACT)
    with pytest.raises(MethodError, match="k = 9 is more than"):
        bound(mlp((4, 5, 5, 3), 0), 4, SeqLip(pairs=RankKPairs(k=9)))
    with pytest.raises(MethodError, match="do not bound a pair"):
        bound(wide, 4, SeqLip(pairs=LipLT()))
    with pytest.raises(UnsupportedNormError):
        bound(wide, 4, norm=(1, 1))
    for wrong in (lambda: RankKPairs(k=0), lambda: ExactPairs(max_neurons=99), lambda: SeqLip(pools="no"),  # type: ignore[arg-type]
                  lambda: SeqLip(pairs="exact")):  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(InputError):
            wrong()


@pytest.mark.parametrize("scale", [1e150, 1e-150, 1e6])
def test_scales(scale: float) -> None:
    model = mlp((3, 5, 4, 2), 0)
    before = bound(model, 3).value
    with torch.no_grad():
        model[2].weight.mul_(scale)  # type: ignore[operator, union-attr]
    assert bound(model, 3).value == pytest.approx(scale * before, rel=1e-3)
    assert bound(model, 3, EXACT).value <= scale * before * (1 + 1e-9)


def test_zero_layers() -> None:
    for zeros in ((1,), (0,), (2,), (0, 1, 2)):
        model = chain([np.zeros((4, 4)) if i in zeros else np.eye(4) for i in range(3)])
        for method in (CERTIFIED, EXACT):
            assert bound(model, 4, method).value <= 1e-100


def test_units_of_pairs_contain_every_vertex() -> None:
    (found,) = needed_chains(capture(mlp((30, 6, 40), 0), torch.zeros(1, 30)), False).values()
    pair = FactoredChain(found, None).pair(0)
    assert pair is not None
    read = Pair.of(pair)
    assert read.p.shape == (6, 6)
    assert read.q.shape == (6, 6)
    assert all(bool((g.diagonal(dim1=1, dim2=2).sum(1) <= 1).all()) for g in read.grams())


def test_inner_solver_of_certified_pairs() -> None:
    model = mlp((3, 5, 4, 2), 2)
    loose = SeqLip(pairs=CertifiedPairs(inner=LipSDP(tolerance=0.05)))
    assert vertex_maximum(linear_weights(model)) <= bound(model, 3, loose).value


def test_layers_too_large_to_decompose_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One factor of such a layer is the identity, turn by turn; nothing else changes, and the check agrees."""
    model = mlp((4, 6, 5, 5, 3), 0)
    monkeypatch.setattr("lipcert.certificates.chains.writable", lambda linear: False)
    for method in (SeqLip(), SeqLip(pairs=RankKPairs(k=3))):
        value = bound(model, 4, method).value
        assert value <= bound(model, 4, AutoLip()).value * (1 + 1e-9)
        attacked = lipcert.lower_bound(model, torch.zeros(1, 4), budget=0.3).value
        assert attacked <= value


def test_probabilistic_pairs_say_so(tmp_path: Path) -> None:
    model = mlp((4, 9, 8, 3), 0)
    found = bound(model, 4, SeqLip(pairs=LipSDP(route="matrix_free")))
    assert found.guarantee == "probabilistic"
    assert found.value >= bound(model, 4, EXACT).value
    found.save(tmp_path / "p.lipcert")
    assert lipcert.verify(tmp_path / "p.lipcert", model, torch.zeros(1, 4)).value == found.value
