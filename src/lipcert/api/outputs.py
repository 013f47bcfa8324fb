"""What a model's values and outputs lie in on a domain, and how far the executed model may be from the real one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch
from torch import Tensor

from lipcert.api.common import network_of
from lipcert.arguments import budget_of, device_of, real, seed_of, whole
from lipcert.capture.adapter import Example, Wrt
from lipcert.capture.load import Model, prepared
from lipcert.capture.model import Output
from lipcert.capture.torch_export import capture_steps
from lipcert.domain import Domain, exactly
from lipcert.errors import InputError, NumericsError, named
from lipcert.execution.error import ExecutionError
from lipcert.execution.settings import require_float32
from lipcert.execution.walk import errors
from lipcert.network.linear import size
from lipcert.network.origin import module_paths
from lipcert.numerics.process_state import ordinary
from lipcert.problem import require_select
from lipcert.ranges.build import Ranges
from lipcert.result import OutputBound

if TYPE_CHECKING:
    from lipcert.robustness.bounding import Wanted


def ranges(
    model: Model, example_input: Example, domain: Domain = None, wrt: Wrt = None, output: Output = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the values inside a model lie in for every input of a domain: by intervals and linear bounds, proved.

    Args:
        model, example_input, wrt, output: as for ``bound``.
        domain: a ``Ball``, ``Box`` or ``Intersection``; None for the whole space, where only what an activation bounds
            has finite ranges.

    Returns:
        (lower, upper) of every value, float64, of one example's shape, by the path of the module that computes it
        (``features.0``; the op's name where there is none; ``#2``, ``#3`` … where several have the same), in order,
        the input first and the output last. Rounding is included; infinite where nothing is known.

    Raises:
        CaptureError, InputError: as ``bound``.
    """
    network = network_of(model, example_input, wrt, output)
    if domain is not None:
        if not isinstance(domain, get_args(Domain)):
            raise InputError(f"domain must be a lipcert.Ball, Box or Intersection, not {type(domain).__name__}.")
        domain = domain.fitted(network.in_shape)
    with ordinary():
        boxes = Ranges.of(network, domain, tighten="all").boxes
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for node, box in zip(network.nodes, boxes, strict=True):
        name = module_paths(node.origin) or node.name
        count = sum(key.split("#")[0] == name for key in found)
        shape = node.shape[1:] if node.shape[:1] == (1,) else node.shape
        found[name if not count else f"{name}#{count + 1}"] = box.low.reshape(shape), box.high.reshape(shape)
    return found


def output_bounds(
    model: Model,
    example_input: Example,
    domain: Domain,
    select: Tensor | Sequence[Any] | None = None,
    budget: float = 60.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    above: float | None = None,
    below: float | None = None,
    split: bool = False,
    wrt: Wrt = None,
    output: Output = None,
) -> OutputBound:
    """Certified lower and upper bounds of what a model puts out on a domain.

    Args:
        model, example_input, seed, device, wrt, output: as for ``bound``.
        domain: a ``Ball``, a ``Box`` or an ``Intersection`` of both.
        select: optional (k, m) matrix, tensor, array or lists: bounded are its k combinations of the flattened output;
            None: the m outputs.
        budget: seconds of search, about; ranges and the check come on top.
        above, below: what is to be proved of all lower, of all upper bounds. The search ends as soon as they are beyond
            it; where they are not, the domain is split as long as the budget lasts.
        split: split the domain to the end of the budget to tighten the bounds, whatever they are. Without it and
            without ``above`` or ``below`` the search ends when it has converged, which is seldom the whole budget.

    Returns:
        An ``OutputBound``: ``lower`` ≤ select·f(x) ≤ ``upper`` for every x of the domain, with a certificate.

    Raises:
        CaptureError, InputError: as ``bound``.
    """
    wanted = _wanted(above, below, split, least=False)
    return _outputs(model, example_input, domain, select, None, budget, seed, device, wanted, wrt, output)


def margin(
    model: Model,
    example_input: Example,
    label: int,
    domain: Domain,
    budget: float = 60.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    above: float | None = None,
    split: bool = False,
    wrt: Wrt = None,
    output: Output = None,
) -> OutputBound:
    """Certified lower bounds of f_label − f_k over a domain, for every other class k, in order.

    Args:
        model, example_input, domain, budget, seed, device, wrt, output: as for ``output_bounds``.
        label: a class, 0 ≤ label < number of outputs.
        above: what every margin is to exceed, 0 for robustness; as for ``output_bounds``.
        split: as for ``output_bounds``; what is tightened is the least of the margins.

    Returns:
        An ``OutputBound`` with m − 1 lower bounds. Where its ``value``, the least of them, is positive, every x of the
        domain is given the class ``label``.

    Raises:
        CaptureError, InputError: as ``bound``.
    """
    number = whole(label)
    if number is None:
        raise InputError(f"label must be an integer, the number of a class, not {label!r:.60}.")
    wanted = _wanted(above, None, split, least=True)
    return _outputs(model, example_input, domain, None, number, budget, seed, device, wanted, wrt, output)


def _wanted(above: float | None, below: float | None, split: bool, least: bool) -> Wanted:
    from lipcert.robustness.bounding import Wanted

    ends = {"above": above, "below": below}
    for name, given in ends.items():
        if given is not None and math.isnan(real(given)):
            raise InputError(f"{name} must be a number, what bounds are to pass, or None, not {given!r:.60}.")
    if not isinstance(split, bool):
        raise InputError(f"split must be True or False, not {split!r:.60}.")
    low, high = (None if end is None else real(end) for end in ends.values())
    return Wanted(low, high, split, least)


def _outputs(
    model: Model, example: Example, domain: Domain, select: Any, label: int | None, budget: float, seed: int,
    device: str | torch.device | None, wanted: Wanted, wrt: Wrt, output: Output,
) -> OutputBound:  # fmt: skip
    from lipcert.robustness.bounding import bound_outputs
    from lipcert.robustness.outputs import margin_rows

    seed, seconds, place = seed_of(seed), budget_of(budget), device_of(device)
    if not isinstance(domain, get_args(Domain)[:-1]):
        raise InputError(
            f"domain must be a lipcert.Ball, a lipcert.Box or a lipcert.Intersection, not {type(domain).__name__}: "
            "outputs are bounded on a bounded part of the input space."
        )
    network = network_of(model, example, wrt, output)
    if label is not None:
        select = margin_rows(size(network.out_shape), label)
    elif select is not None and not isinstance(select, Tensor):
        try:
            select = exactly("select", select)
        except InputError as problem:
            raise InputError(
                f"select must be a real (k, m) matrix, a tensor, an array or lists of numbers that float64 holds, not "
                f"{select!r:.60}."
            ) from problem
    if select is not None:
        require_select(select, size(network.out_shape))
    fitted = domain.fitted(network.in_shape)
    with ordinary(), torch.random.fork_rng(devices=[]):
        return bound_outputs(network, fitted, select, label is None, seconds, seed, place, wanted)


@overload
def execution_error(
    model: Model,
    example_input: Example,
    domain: Domain,
    arithmetic: Literal["float32"] = "float32",
    select: Tensor | None = None,
    wrt: Wrt = None,
    output: Output = None,
) -> ExecutionError: ...


@overload
def execution_error(
    model: Model,
    example_input: Example,
    domain: Sequence[Domain],
    arithmetic: Literal["float32"] = "float32",
    select: Tensor | None = None,
    wrt: Wrt = None,
    output: Output = None,
) -> list[ExecutionError]: ...


def execution_error(
    model: Model,
    example_input: Example,
    domain: Domain | Sequence[Domain],
    arithmetic: Literal["float32"] = "float32",
    select: Tensor | None = None,
    wrt: Wrt = None,
    output: Output = None,
) -> ExecutionError | list[ExecutionError]:
    """How far the network that runs in float32 may be from the real-valued one that bounds are about, on a domain.

    Covered is the model in eval mode, run op by op by torch on an x86-64 CPU, for any batch and number of threads: any
    order of summation, fused multiply-adds, subnormal numbers kept or flushed. Not covered are reduced precisions
    (TF32, bfloat16, float16, ``set_float32_matmul_precision`` other than ``highest``), ``torch.compile``, GPUs, and
    convolutions by Winograd's algorithm or FFT, which torch runs where oneDNN is switched off
    (``torch.backends.mkldnn``) and NNPACK is not.

    Args:
        model, example_input, wrt, output: as for ``bound``; parameters and inputs are float32.
        domain: a ``Ball``, ``Box`` or ``Intersection``, or a list of such: the float32 tensors in it are meant.
        arithmetic: ``float32``.
        select: optional (k, m) matrix C applied to the flattened output: the bound is then for C(f̂(x) − f(x)).

    Returns:
        An ``ExecutionError``; for a list of domains a list of them.

    Raises:
        UnsupportedOpError: an op whose execution is not known, told by name.
        NumericsError: float32 may overflow on the domain.
        CaptureError, InputError: as ``bound``; parameters in another precision than float32, or a process set to one.
    """
    if arithmetic != "float32":
        raise InputError(
            f"arithmetic must be 'float32', not {arithmetic!r}: TF32, bfloat16, float16 and other precisions are not "
            "covered."
        )
    steps = capture_steps(*prepared(model, example_input, wrt, output))
    require_float32(steps)
    network = steps.network
    if select is not None:
        require_select(select, size(network.out_shape))
    rows = None if select is None else select.detach().to("cpu", torch.float64).clone()
    found: list[ExecutionError] = []
    for one in domain if isinstance(domain, (list, tuple)) else [domain]:
        if one is None or not isinstance(one, get_args(Domain)):
            raise InputError(f"domain must be a lipcert.Ball, Box or Intersection, not {type(one).__name__}.")
        fitted = one.fitted(network.in_shape)
        with named(NumericsError, "bounding the execution"), ordinary():
            bounds = errors(steps, fitted, rows)
        shape = network.out_shape[1:]
        found.append(
            ExecutionError(
                bounds if rows is not None else bounds.reshape(shape), arithmetic, fitted, network.in_shape[1:]
            )
        )
    return found if isinstance(domain, (list, tuple)) else found[0]
