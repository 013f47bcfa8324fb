"""The experiments on tiny networks: their rows keep the order that must hold, their proofs hold when done again."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lipcert
from experiments import alexnet, common, gaussian_process, greedy_lies, ideal_spectra
from lipcert.theory import alignment
from tests.zoo import vertex_maximum

SLACK = 1 + 1e-3  # methods that approach their optimum stop within this


def values(rows: list[common.Row], net: str) -> dict[str, float]:
    """Method → value of one network."""
    return {row.method: row.value for row in rows if row.net == net and row.value is not None}


def tiny_cnn() -> nn.Module:
    """1×8×8 → 3 with a max-pool, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def test_gaussian_process_rows_keep_their_order() -> None:
    setting = gaussian_process.Setting(width=5, points=60, steps=30, grid=15, budget=0.5, attack=0.1)
    data = gaussian_process.sample(setting)
    rows = gaussian_process.study(2, data, setting, enumerate_pairs=True)
    assert common.disorder(rows) == []
    v = values(rows, "2 hidden")
    assert 0 < v["grid"] <= v["attack"] * (1 + 1e-6)
    assert v["attack"] <= v[gaussian_process.EXACT] <= v["lipsdp"] * SLACK <= v["seqlip"] * SLACK**2
    assert v[gaussian_process.EXACT] <= v[gaussian_process.PAIRS] * SLACK
    assert v["seqlip_greedy"] <= v[gaussian_process.PAIRS] * (1 + 1e-9)
    assert v[gaussian_process.PAIRS] <= v["seqlip"] * (1 + 1e-9)
    assert v["seqlip"] <= v["autolip"] <= v[gaussian_process.FROBENIUS] * (1 + 1e-6)
    assert gaussian_process.page(rows, [2])[-1] == "Bounds below a lower bound: none."


def test_ideal_spectra_are_the_prescribed_ones() -> None:
    for shape, ratio in (("flat", 0.5), ("geometric", 0.1)):
        wanted = ideal_spectra.spectrum(shape, ratio, 6)
        assert wanted[:2].tolist() == [1.0, ratio]
        for layer in ideal_spectra.network(3, wanted, seed=1):
            if isinstance(layer, nn.Linear):
                torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach()), wanted, rtol=1e-9, atol=1e-12)


def test_ideal_spectra_rows_keep_their_order() -> None:
    rows = ideal_spectra.study(ratios=(0.1,), depths=(2,), width=6, attack=0.1)
    assert common.disorder(rows) == []
    for net in {row.net for row in rows}:
        v = values(rows, net)
        assert v["autolip"] == pytest.approx(1.0, rel=1e-6)
        assert v["attack"] <= v["seqlip"] <= v["autolip"] * (1 + 1e-9)
        assert v["seqlip_greedy"] <= min(v["seqlip"], v["theorem 2"]) * (1 + 1e-9)


def test_the_mean_alignment_at_finite_width() -> None:
    generator, n = torch.Generator().manual_seed(0), 40
    pairs = torch.nn.functional.normalize(torch.randn(2000, 2, n, generator=generator, dtype=torch.float64), dim=2)
    sampled = torch.tensor([alignment(u, v) for u, v in pairs])
    assert float(sampled.mean()) == pytest.approx(
        ideal_spectra.finite_width(n), abs=4 * float(sampled.std()) / 2000**0.5
    )


@pytest.mark.slow
def test_rank_k_estimates_and_bounds() -> None:
    pytest.importorskip("mlxtend")
    from experiments import mnist_cnn

    inputs = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = mnist_cnn.study(tiny_cnn(), inputs, ranks=(1, 4), bound_ranks=(4,), budget=0.5, attack=0.1)
    assert common.disorder(rows) == []
    v = values(rows, mnist_cnn.NET)
    estimates = [v[mnist_cnn.estimate_name(k)] for k in (1, 4)]
    assert estimates[0] <= estimates[1] * (1 + 1e-9)
    assert estimates[1] <= v[mnist_cnn.bound_name(4)] <= v["autolip"] * (1 + 1e-9)
    assert v["attack"] <= v["lipsdp"] <= v["seqlip"] * SLACK <= v["autolip"] * SLACK**2
    assert v["autolip, 10 power iterations"] <= v["autolip"] * (1 + 1e-9)


@pytest.mark.slow
def test_alexnet_writes_every_row_as_it_comes(tmp_path) -> None:
    seen = []

    def tell(rows: list[common.Row]) -> None:
        common.write_csv(rows, tmp_path / "rows.csv")
        with (tmp_path / "rows.csv").open() as file:
            seen.append(len(list(csv.DictReader(file))))

    rows = alexnet.study(tiny_cnn(), torch.zeros(1, 1, 8, 8), 2, budget=0.3, skip={"power"}, tell=tell)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    kinds = ["upper", "estimate", "estimate", "upper", "upper", "upper", "upper", "lower"]
    assert [row.kind for row in rows] == kinds
    assert common.disorder(rows) == []
    assert all(row.value > 0 for row in rows)
    assert "AutoLip is larger by: seqlip rank 2, estimate ×" in "\n".join(alexnet.page(rows, "none"))


def test_alexnet_takes_a_users_checkpoint(tmp_path) -> None:
    model, other = tiny_cnn(), tiny_cnn()
    state = {name: value.clone() + 1.0 for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "good.pth")
    save_file(state, tmp_path / "good.safetensors")
    for name in ("good.pth", "good.safetensors"):
        alexnet.load_weights(other, tmp_path / name)
        assert torch.equal(other[0].weight, state["0.weight"])
        other = tiny_cnn()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "6.bias"}, "missing: 6.bias"),
        (lambda s: s | {"extra": torch.zeros(1)}, "unknown: extra"),
        (lambda s: s | {"6.bias": torch.zeros(7)}, r"another shape: 6.bias \(7,\) instead of \(5,\)"),
        (lambda s: {"state_dict": s}, "plain state dict"),
        (lambda s: common.Row("a class", "instead", "upper", 1.0), "cannot read .* as a state dict"),
    ],
)
def test_alexnet_says_what_is_wrong_with_a_checkpoint(tmp_path, change, message) -> None:
    torch.save(change(dict(tiny_cnn().state_dict())), tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=message):
        alexnet.load_weights(tiny_cnn(), tmp_path / "bad.pt")


def test_greedy_lies_and_the_proofs_hold_again() -> None:
    deep = (np.array([[0, 1], [-2, 2], [2, 0]]), np.array([[-2, 2, 2], [-1, 1, 1]]), np.array([[2, 2]]))
    found = greedy_lies.cases(searched=((2, 3, 1),))
    assert len(found) == 3
    for case in (*found, greedy_lies.steepest(deep)):
        weights = [torch.from_numpy(w.astype(float)) for w in case.weights]
        model = greedy_lies.model_of(case.weights)
        x = torch.from_numpy(case.point.astype(float))
        again = torch.autograd.functional.jacobian(lambda v, model=model: model(v[None])[0], x)
        assert torch.equal(again, torch.from_numpy(case.jacobian.astype(float)))
        proved = float(torch.linalg.matrix_norm(again, 2))
        assert proved <= vertex_maximum(weights) * (1 + 1e-9)
        assert case.vertex == pytest.approx(vertex_maximum(weights))
        assert min(greedy_lies.heuristic(case.weights, lbfgs) for lbfgs in (False, True)) < proved * (1 - 1e-4)


def test_greedy_lies_rows_agree_with_the_library() -> None:
    case = greedy_lies.cases(searched=())[0]
    rows = [*greedy_lies.study([case], budget=0.2), *greedy_lies.power_rows()]
    assert common.disorder(rows) == []
    v = values(rows, "case 1")
    assert v["seqlip_greedy"] == pytest.approx(greedy_lies.heuristic(case.weights, False))
    assert v["seqlip_lbfgs"] == pytest.approx(greedy_lies.heuristic(case.weights, True))
    assert v["seqlip_greedy"] < v["attack"] * (1 - 1e-3)
    assert v["attack"] == pytest.approx(case.steepness)
    assert v["attack"] <= v["branch_and_bound"] <= v["seqlip, exact pairs"] * SLACK


def test_a_bound_below_a_lower_bound_is_reported() -> None:
    rows = [common.Row("net", "attack", "lower", 2.0), common.Row("net", "wrong", "upper", 1.9)]
    assert common.disorder([*rows, common.Row("other", "fine", "upper", 1.0)]) == ["net: wrong 1.9 < attack 2.0"]
    assert "wrong 1.9 < attack 2.0" in common.verdict(rows)


def forty_images(folder) -> None:
    """An mnist.npz of noise."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, 28, 28, generator=generator), torch.arange(40) % 10
    np.savez(
        folder / "mnist.npz",
        **{f"{part}_images": (255 * images).byte().numpy() for part in ("train", "test")},
        **{f"{part}_labels": labels.byte().numpy() for part in ("train", "test")},
    )


def test_a_later_stage_has_its_own_steps_and_order_of_images(tmp_path, monkeypatch) -> None:
    from experiments import training
    from experiments.training_recipes import ALL

    forty_images(tmp_path)
    later = replace(ALL["plain"], after="plain")
    variants = {"quarter": later, "three": replace(later, further=3), "others": replace(later, further=3, order=1)}
    monkeypatch.setattr(training, "ALL", {**ALL, **variants})
    setting = training.Setting(tmp_path, tmp_path, tmp_path / "x.csv", "cpu", 1.0, 8, 1.0, 1, 1, "train")
    data = training.Mnist.load(tmp_path, "cpu")
    found = {name: training.trained("convsmall", name, 0, data, setting) for name in ("plain", *variants)}
    assert [facts["steps"] for _, facts in found.values()] == [8, 10, 11, 11]
    assert not torch.equal(found["three"][0][0].weight, found["others"][0][0].weight)


@pytest.mark.slow
def test_training_goes_on_where_it_stopped_and_its_page_shows_each_row(tmp_path) -> None:
    from experiments import training, training_page

    forty_images(tmp_path)
    places = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "training.csv")]
    options = [*places, "--steps", "2", "--count", "2", "--budget", "0.01", "--only", "mixed_0.3", "--seeds"]
    training.main([*options, "0", "--stage", "train"])
    assert (tmp_path / "work" / "convsmall-mixed_0.3-0.pt").exists()
    training.main([*options, "0"])
    training.main([*options, "0"])
    (row,) = training.rows_of(tmp_path / "training.csv")
    assert training_page.disorder(row) == []
    assert float(row["lower"]) <= float(row["constant"])
    assert training_page.disorder({**row, "certified_1": "100", "attacked_1": "50"}) == ["certified at 1"]
    assert "PGD + 0.35 × pair constants, ε = 0.3" in (tmp_path / "training.md").read_text()
    more = [*options, "0", "--budget", "0.02"]  # of the same file of certificates
    training.main(more)
    training.main(more)
    training.main([*options, "0"])
    assert [row["budget"] for row in training.rows_of(tmp_path / "training.csv")] == ["0.02"]
    assert len(list((tmp_path / "work").glob("*.run"))) == 1
    training.main([*options, "1", "--bfloat16"])
    assert [row["device"] for row in training.rows_of(tmp_path / "training.csv")] == ["cpu", "cpu bfloat16"]
    assert "CPU bfloat16 seconds" in (tmp_path / "training.md").read_text()


def test_what_the_short_attack_leaves_of_a_linear_model() -> None:
    """Two classes alone can win: an image is kept exactly where it is farther from their border than the radius."""
    from experiments.first_images import kept

    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(6, 10)
    with torch.no_grad():
        model.weight.copy_(torch.randn(10, 6, generator=generator))
        model.weight[2:] = 0.0
        model.bias.copy_(torch.tensor([0.0, 0.0] + [-100.0] * 8))
        x = torch.randn(400, 6, generator=generator)
        y = model(x).argmax(1)
        scores = model(x)
        distance = (scores[:, 0] - scores[:, 1]).abs() / (model.weight[0] - model.weight[1]).norm()
    radius = float(distance.median())
    clear = (distance - radius).abs() > 1e-4
    assert torch.equal(kept(model, x, y, radius)[clear], (distance > radius)[clear])
    assert not bool(kept(model, x, 1 - y, radius).any())


def test_the_orthogonal_start_has_a_product_of_norms_of_about_one() -> None:
    from experiments.training_recipes import ALL

    model = ALL["mixed_1.58_r0.4_orthogonal"].model("convsmall", 0)
    assert 0.9 < lipcert.bound(model, torch.zeros(1, 1, 28, 28), method="autolip").value < 1.4
