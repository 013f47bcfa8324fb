"""The public functions: glue between capture, methods, certificates and attack."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

import lipcert.methods.all  # noqa: F401  (registers every method)
from lipcert.arguments import budget_of, device_of, generator_of, seed_of, whole
from lipcert.capture.load import Model, load_model
from lipcert.capture.torch_export import capture, capture_steps
from lipcert.certificates import kinds  # noqa: F401  (registers every check)
from lipcert.certificates.verify_file import verify_file
from lipcert.domain import Domain, exactly, require_real
from lipcert.errors import InputError, NumericsError, named
from lipcert.execution.error import ExecutionError
from lipcert.execution.settings import require_float32
from lipcert.execution.walk import errors
from lipcert.methods import estimates
from lipcert.methods.auto import Trials
from lipcert.methods.base import Method, MethodInfo, Run, describe, make, registered
from lipcert.network.linear import size
from lipcert.network.origin import module_paths
from lipcert.numerics.chance import Chance
from lipcert.numerics.process_state import ordinary
from lipcert.ops.registry import OpInfo
from lipcert.ops.registry import supported_ops as registered_ops
from lipcert.problem import Problem, as_norm, require_select
from lipcert.ranges.build import Ranges
from lipcert.result import Attempt, Bound, Comparison, Estimate, LowerBound, OutputBound

Anchor = Tensor | Literal["center"] | None


@overload
def bound(
    model: Model,
    example_input: Tensor,
    method: str | Method = "auto",
    norm: tuple[float, float] = (2, 2),
    domain: Domain = None,
    select: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    budget: float = 60.0,
    guarantee: Literal["any", "rigorous"] = "any",
    anchor: Anchor = None,
) -> Bound: ...


@overload
def bound(
    model: Model,
    example_input: Tensor,
    method: str | Method = "auto",
    norm: tuple[float, float] = (2, 2),
    *,
    domain: Sequence[Domain],
    select: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    budget: float = 60.0,
    guarantee: Literal["any", "rigorous"] = "any",
    anchor: Anchor = None,
) -> list[Bound]: ...


def bound(
    model: Model,
    example_input: Tensor,
    method: str | Method = "auto",
    norm: tuple[float, float] = (2, 2),
    domain: Domain | Sequence[Domain] = None,
    select: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    budget: float = 60.0,
    guarantee: Literal["any", "rigorous"] = "any",
    anchor: Anchor = None,
) -> Bound | list[Bound]:
    """A certified upper bound of the Lipschitz constant of ``model``.

    Args:
        model: an ``nn.Module`` in eval mode, an ExportedProgram, or the path of a ``.pt2`` file. Never changed.
        example_input: floating tensor with a leading batch dimension of any size; only its shape matters.
        method: a name from ``lipcert.methods()`` or a method object such as ``lipcert.AutoLip()``.
        norm: (p, q), input norm first, each 1, 2 or inf.
        domain: None (everywhere), a ``Ball``, a ``Box`` or an ``Intersection`` of both; or a list of such, of which
            each gets a Bound of its own and the model is captured once.
        select: optional (k, m) matrix applied to the flattened output, e.g. a row e_y − e_c for a margin.
        seed: seed of searches. The random starts of probabilistic checks come from the operating system's entropy.
        device: where searches may run; checks run on the CPU in float64.
        progress: show a progress bar for anything that takes over 2 s.
        budget: seconds of search, for each domain. ``auto`` counts the checks in and returns in about this time, with
            whatever bound is the best by then; a method asked for by name may need more, its check comes on top.
        guarantee: ``rigorous`` returns only bounds whose check accounts for its own rounding and needs no random start;
            ``any`` returns the smallest bound, of whatever kind, and says which.
        anchor: None, a point x̂ of the domain (one example's shape), or ``center`` for that of each ball: what is
            bounded is then ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p over x of the domain alone, all that a certified radius around x̂
            needs, and smaller than the constant for all pairs.

    Returns:
        A ``Bound``; ``print`` it, read ``.value``, or ``.save`` its certificate. For a list of domains a list of Bounds
        in the same order, each true with the probability that it states.

    Raises:
        CaptureError: the model cannot be captured faithfully (subclasses name unsupported and non-Lipschitz ops).
        InputError: an unusable argument; UnsupportedNormError: the method cannot do this pair of norms.
    """
    started = time.perf_counter()
    chosen = make(method)
    several = isinstance(domain, (list, tuple))
    domains: list[Any] = list(domain) if isinstance(domain, (list, tuple)) else [domain]
    problems = _problems(model, example_input, norm, domains, select, several, anchor)
    found: list[Bound] = []
    while problems:
        problem = problems.pop(0)  # what it works out for itself goes with it
        chosen.require_norm(problem.norm)
        with ordinary(), _reporter(progress, _title(chosen.name, len(found), len(domains))) as report:
            run = Run(generator_of(seed), device_of(device), budget_of(budget), report, rigorous=_rigorous(guarantee))
            with torch.random.fork_rng(devices=[]):
                one = chosen.bound(problem, run, Chance())
        found.append(replace(one, seconds=time.perf_counter() - started))
        started = time.perf_counter()
    return found if several else found[0]


def compare(
    model: Model,
    example_input: Tensor,
    norm: tuple[float, float] = (2, 2),
    domain: Domain = None,
    select: Tensor | None = None,
    methods: Sequence[str | Method] | None = None,
    budget: float = 60.0,
    lower_budget: float = 10.0,
    inputs: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
    anchor: Anchor = None,
) -> Comparison:
    """Every applicable method side by side, with the attack's lower bound.

    Args:
        model, example_input, norm, domain, select, seed, device, progress, anchor: as for ``bound``.
        methods: names or method objects; None takes every registered one that can do the norms.
        budget: seconds for each method.
        lower_budget: seconds for the lower bound.
        inputs: data for the lower bound's starts.

    Returns:
        A ``Comparison``: rows (method, value, guarantee, seconds, remark), the lower bound, and ``print``-able text.
    """
    problem = _problem(model, example_input, norm, domain, select, anchor)
    _require_data(inputs, problem)
    if methods is None:
        chosen = [kind() for name, kind in registered().items() if name != "auto" and problem.norm in kind.norms]
    else:
        chosen = [make(one) for one in methods]
        for one in chosen:
            one.require_norm(problem.norm)
    from lipcert.attack import attack

    rows: list[Attempt] = []
    chance = Chance()  # one for all rows: whoever quotes the best of them may
    with ordinary(), _reporter(progress, "compare") as report, torch.random.fork_rng(devices=[]):
        for one in chosen:
            run = Run(generator_of(seed), device_of(device), budget_of(budget), report)
            trials = Trials(problem, run, chance)
            trials.attempt(one, run.budget)
            rows += trials.attempts
        found = attack(problem, inputs, budget_of(lower_budget), seed_of(seed), device_of(device), report)
    lower = replace(found, input_shape=problem.model.in_shape[1:])
    return Comparison(tuple(sorted(rows, key=lambda r: math.inf if r.value is None else r.value)), lower)


def lower_bound(
    model: Model,
    example_input: Tensor,
    norm: tuple[float, float] = (2, 2),
    domain: Domain = None,
    inputs: Tensor | None = None,
    budget: float = 20.0,
    seed: int = 0,
    select: Tensor | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    anchor: Anchor = None,
) -> LowerBound:
    """A lower bound of the Lipschitz constant with a witness: a point and a direction of steepest change.

    With an anchor x̂ it is one of sup ‖f(x) − f(x̂)‖_q/‖x − x̂‖_p over x of the domain, and the witness a pair (x̂, x).

    Args:
        model, example_input, norm, domain, select, device, progress, anchor: as for ``bound``; the witness lies in
            ``domain``.
        inputs: (B, *shape) data to start from; random points are used as well.
        budget: seconds of search.
        seed: seed of the search.

    Returns:
        A ``LowerBound`` whose value re-evaluates from its witness in float64.
    """
    problem = _problem(model, example_input, norm, domain, select, anchor)
    seed = seed_of(seed)
    _require_data(inputs, problem)
    from lipcert.attack import attack

    with ordinary(), _reporter(progress, "attack") as report, torch.random.fork_rng(devices=[]):
        found = attack(problem, inputs, budget_of(budget), seed, device_of(device), report)
    return replace(found, input_shape=problem.model.in_shape[1:])


def estimate(
    model: Model,
    example_input: Tensor,
    method: str = "seqlip_greedy",
    norm: tuple[float, float] = (2, 2),
    select: Tensor | None = None,
    k: int | None = None,
    steps: int = 100,
    seed: int = 0,
    pools: Literal["factor", "through"] = "factor",
) -> Estimate:
    """A number of the 2018 paper that is neither an upper nor a lower bound; kept for comparison.

    Args:
        model, example_input, norm, select: as for ``bound``; the norms must be (2, 2).
        method: ``seqlip_greedy``, ``seqlip_lbfgs``, ``seqlip_rank_k`` or ``power_iteration`` (AutoLip as in 2018).
        k: singular triplets per layer for ``seqlip_rank_k``.
        steps: power iterations per layer.
        seed: seed of the random starts.
        pools: ``through`` puts max-pools and sorts inside the pairs (greedy and rank k); ``factor`` ends chains there.
    """
    problem = _problem(model, example_input, norm, None, select)
    with named(NumericsError, "the estimate"), ordinary(), torch.random.fork_rng(devices=[]):
        return estimates.estimate(problem, method, k, steps, generator_of(seed), pools)


def verify(path: str | Path, model: Model, example_input: Tensor) -> Bound | OutputBound:
    """Re-check a saved certificate: recapture the model, compare its hash, run the check alone.

    Raises:
        CertificateError: missing, damaged, tampered with, of another model, or it does not prove its claim.
        InputError: ``path`` is no path.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(
            f"verify takes the path of a certificate, not {type(path).__name__}; a bound writes one with .save(path)."
        )
    return verify_file(path, capture(load_model(model), example_input))


def ranges(model: Model, example_input: Tensor, domain: Domain = None) -> dict[str, tuple[Tensor, Tensor]]:
    """What the values inside a model lie in for every input of a domain: by intervals and linear bounds, proved.

    Args:
        model, example_input: as for ``bound``.
        domain: a ``Ball``, ``Box`` or ``Intersection``; None for the whole space, where only what an activation bounds
            has finite ranges.

    Returns:
        (lower, upper) of every value, float64, of one example's shape, by the path of the module that computes it
        (``features.0``; the op's name where there is none; ``#2``, ``#3`` … where several have the same), in order,
        the input first and the output last. Rounding is included; infinite where nothing is known.

    Raises:
        CaptureError, InputError: as ``bound``.
    """
    network = capture(load_model(model), example_input)
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
    example_input: Tensor,
    domain: Domain,
    select: Tensor | Sequence[Any] | None = None,
    budget: float = 60.0,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> OutputBound:
    """Certified lower and upper bounds of what a model puts out on a domain.

    Args:
        model, example_input, seed, device: as for ``bound``.
        domain: a ``Ball``, a ``Box`` or an ``Intersection`` of both.
        select: optional (k, m) matrix, tensor, array or lists: bounded are its k combinations of the flattened output;
            None: the m outputs.
        budget: seconds of search, about; ranges and the check come on top.

    Returns:
        An ``OutputBound``: ``lower`` ≤ select·f(x) ≤ ``upper`` for every x of the domain, with a certificate.

    Raises:
        CaptureError, InputError: as ``bound``.
    """
    return _outputs(model, example_input, domain, select, None, budget, seed, device)


def margin(
    model: Model,
    example_input: Tensor,
    label: int,
    domain: Domain,
    budget: float = 60.0,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> OutputBound:
    """Certified lower bounds of f_label − f_k over a domain, for every other class k, in order.

    Args:
        model, example_input, domain, budget, seed, device: as for ``output_bounds``.
        label: a class, 0 ≤ label < number of outputs.

    Returns:
        An ``OutputBound`` with m − 1 lower bounds. Where its ``value``, the least of them, is positive, every x of the
        domain is given the class ``label``.

    Raises:
        CaptureError, InputError: as ``bound``.
    """
    number = whole(label)
    if number is None:
        raise InputError(f"label must be an integer, the number of a class, not {label!r:.60}.")
    return _outputs(model, example_input, domain, None, number, budget, seed, device)


def _outputs(
    model: Model, example: Tensor, domain: Domain, select: Any, label: int | None, budget: float, seed: int,
    device: str | torch.device | None,
) -> OutputBound:  # fmt: skip
    from lipcert.robustness.outputs import bound_outputs, margin_rows

    seed, seconds, place = seed_of(seed), budget_of(budget), device_of(device)
    if not isinstance(domain, get_args(Domain)[:-1]):
        raise InputError(
            f"domain must be a lipcert.Ball, a lipcert.Box or a lipcert.Intersection, not {type(domain).__name__}: "
            "outputs are bounded on a bounded part of the input space."
        )
    network = capture(load_model(model), example)
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
        return bound_outputs(network, fitted, select, label is None, seconds, seed, place)


@overload
def execution_error(
    model: Model,
    example_input: Tensor,
    domain: Domain,
    arithmetic: Literal["float32"] = "float32",
    select: Tensor | None = None,
) -> ExecutionError: ...


@overload
def execution_error(
    model: Model,
    example_input: Tensor,
    domain: Sequence[Domain],
    arithmetic: Literal["float32"] = "float32",
    select: Tensor | None = None,
) -> list[ExecutionError]: ...


def execution_error(
    model: Model,
    example_input: Tensor,
    domain: Domain | Sequence[Domain],
    arithmetic: Literal["float32"] = "float32",
    select: Tensor | None = None,
) -> ExecutionError | list[ExecutionError]:
    """How far the network that runs in float32 may be from the real-valued one that bounds are about, on a domain.

    Covered is the model in eval mode, run op by op by torch on an x86-64 CPU, for any batch and number of threads: any
    order of summation, fused multiply-adds, subnormal numbers kept or flushed. Not covered are reduced precisions
    (TF32, bfloat16, float16, ``set_float32_matmul_precision`` other than ``highest``), ``torch.compile``, GPUs, and
    convolutions by Winograd's algorithm or FFT, which torch runs where oneDNN is switched off
    (``torch.backends.mkldnn``) and NNPACK is not.

    Args:
        model, example_input: as for ``bound``; parameters and input are float32.
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
    steps = capture_steps(load_model(model), example_input)
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


def methods() -> tuple[MethodInfo, ...]:
    """Every method with its norms and options."""
    return describe()


def supported_ops() -> tuple[OpInfo, ...]:
    """Every op with a rule, its family, kind and constants."""
    return registered_ops()


def _problem(
    model: Model, example: Tensor, norm: Any, domain: Domain, select: Tensor | None, anchor: Anchor = None
) -> Problem:
    return _problems(model, example, norm, [domain], select, anchor=anchor)[0]


def _problems(
    model: Model,
    example: Tensor,
    norm: Any,
    domains: list[Domain],
    select: Tensor | None,
    several: bool = False,
    anchor: Anchor = None,
) -> list[Problem]:
    """One problem for each domain, of a model that is captured once."""
    pair = as_norm(norm)
    for number, one in enumerate(domains):
        if not isinstance(one, get_args(Domain)):
            raise InputError(
                f"domain{f'[{number}]' if several else ''} must be None, a lipcert.Ball, a lipcert.Box or a "
                f"lipcert.Intersection, not {type(one).__name__}."
            )
    if select is not None and (not isinstance(select, Tensor) or select.is_complex()):
        raise InputError(f"select must be a real (k, m) tensor, not {type(select).__name__}.")
    network = capture(load_model(model), example)
    for number, one in enumerate(domains if several else []):
        try:
            _ = one and one.fitted(network.in_shape)
        except InputError as problem:
            raise InputError(f"domain[{number}]: {problem}") from problem
    if not domains:
        return []
    fitted = [one and one.fitted(network.in_shape) for one in domains]
    first = Problem(network, pair, fitted[0], select, _anchor(anchor, fitted[0]))
    return [first, *(first.on(one, _anchor(anchor, one)) for one in fitted[1:])]


def _anchor(anchor: Any, domain: Domain) -> Tensor | None:
    """The point itself, or the centre of the domain's ball."""
    if not isinstance(anchor, str):
        return None if anchor is None else exactly("the anchor", anchor)
    balls = () if domain is None else domain.balls()
    if anchor != "center" or not balls:
        raise InputError(
            f"anchor must be a point of the domain, or 'center' where that is a ball; not {anchor!r} on "
            f"{'the whole space' if domain is None else f'a {domain.describe()}'}."
        )
    return balls[0].center


def _title(method: str, number: int, count: int) -> str:
    return method if count == 1 else f"{method}, domain {number + 1} of {count}"


def _require_data(inputs: Any, problem: Problem) -> None:
    if inputs is None:
        return
    require_real("inputs", inputs, "shape (B, *shape of one example)")
    if tuple(inputs.shape[1:]) != problem.model.in_shape[1:]:
        raise InputError(f"inputs has shape {tuple(inputs.shape)}, expected (B, *{problem.model.in_shape[1:]}).")


def _rigorous(guarantee: str) -> bool:
    if guarantee not in ("any", "rigorous"):
        raise InputError(f"guarantee must be 'any' or 'rigorous', not {guarantee!r}.")
    return guarantee == "rigorous"


@contextmanager
def _reporter(progress: bool, title: str):  # type: ignore[no-untyped-def]
    """A rich progress bar that appears only once the work has taken two seconds."""
    if not progress:
        yield lambda fraction, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[step]}"), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    task = bar.add_task(title, total=1.0, step="")
    started = time.perf_counter()
    shown = False

    def report(fraction: float, text: str) -> None:
        nonlocal shown
        if not shown and time.perf_counter() - started > 2.0:
            bar.start()
            shown = True
        bar.update(task, completed=fraction, step=text)

    try:
        yield report
    finally:
        if shown:
            bar.stop()


Reporter = Callable[[float, str], None]
