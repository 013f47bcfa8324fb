"""The forward walk: the error of every executed op from those of its operands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# Rules register themselves.
import lipcert.execution.entrywise
import lipcert.execution.functions
import lipcert.execution.moves
import lipcert.execution.normalisation
import lipcert.execution.softmax
import lipcert.execution.sums  # noqa: F401
from lipcert.capture.steps import Step, Steps
from lipcert.domain import Domain
from lipcert.errors import CaptureError, InputError, LipcertError, NumericsError, UnsupportedOpError
from lipcert.execution.history import History
from lipcert.execution.outcome import Outcome
from lipcert.execution.registry import find
from lipcert.execution.value import Call, Executed
from lipcert.network.builder import Var
from lipcert.network.graph import Network, Node, SelectionNode
from lipcert.network.linear import size
from lipcert.network.nonlinearity import MaxSelection
from lipcert.numerics.interval import Interval
from lipcert.ops.constant import Constant
from lipcert.ranges.build import Ranges, Tighten, applied


@torch.no_grad()
def errors(steps: Steps, domain: Domain, select: Tensor | None = None, tighten: Tighten = "undecided") -> Tensor:
    """|f̂(x) − f(x)| for all float32 tensors x of a bounded domain, entry by entry of the output, rounded up.

    f̂ is the model executed in float32, f the network of real numbers.

    Args:
        steps: the model as executed.
        domain: what x lies in.
        select: (k, m) float64 or None: then |C(f̂(x) − f(x))| for each of its rows, the product in exact arithmetic.
        tighten: for which values linear bounds are worked out (see ``Ranges.of``): nearly all of the time goes there.

    Why this is an upper bound: by induction over the steps. The operands of a step are within their errors of real
    values that lie in their ranges on the domain; its rule bounds how far the exact op moves by that and what the
    executed one adds by rounding, with every value that float32 could not hold refused. So ẑ − z = Σ parts (x̂ − x) + ε
    at each step, and inserted into each other from the output on, row by row: Σ_k Λ_k ε_k (``History``). Either way
    holds; the smaller is returned.

    Raises:
        UnsupportedOpError: an op whose execution is not known.
        NumericsError: overflow cannot be excluded.
        InputError: the model or the domain is not one that this is about.
    """
    _require_known(steps)
    if domain is None:
        raise InputError("rounding grows with the values, so on the whole space there is no bound: give a domain.")
    network = Network(steps.nodes)
    boxes = Ranges.of(network, domain, tighten=tighten).boxes
    history = History()
    known: dict[int, Any] = {}
    for step in steps.calls:
        if step.op == "input":
            known[id(step)] = Executed(boxes[0], torch.zeros_like(boxes[0].low))
        else:
            known[id(step)] = _executed(step, known, network, boxes, history)
    if steps.output is None:
        raise UnsupportedOpError("the output does not depend on the input: there is nothing to execute.")
    found = history.refined(known[id(steps.output)])
    if select is None:
        return found.error.clamp(max=found.length)
    return history.along(found, select)


def margin_errors(steps: Steps, domain: Domain, label: int, tighten: Tighten = "undecided") -> Tensor:
    """|(f̂_y − f̂_k) − (f_y − f_k)| at most on a domain, for y = ``label`` and every class k; 0 for k = y.

    A margin of f that exceeds this is a margin of f̂: the executed network names the class y on all of the domain. The
    difference is never more than the sum of both errors, and less where they move together.
    """
    classes = size(steps.network.out_shape)
    select = -torch.eye(classes, dtype=torch.float64)
    select[:, label] += 1.0
    return errors(steps, domain, select, tighten)


def _require_known(steps: Steps) -> None:
    if steps.dtype != torch.float32:
        raise InputError(
            f"the model takes {str(steps.dtype).removeprefix('torch.')} inputs; arithmetic='float32' is about a model "
            "whose parameters are float32: convert it with model.float() first, then bound that model."
        )
    if steps.decomposed:
        raise UnsupportedOpError(
            f"the rounding of {', '.join(sorted(steps.decomposed))} in float32 is not known: lipcert has no rule for "
            "what PyTorch runs there as one op. A bound for real arithmetic is still to be had."
        )
    if steps.fused:
        raise UnsupportedOpError(
            f"the rounding of {', '.join(steps.fused)} in float32 is not known: PyTorch may run a fused kernel there "
            "that the trace does not show. A bound for real arithmetic is still to be had."
        )


def _executed(
    step: Step, known: Mapping[int, Any], network: Network, boxes: tuple[Interval, ...], history: History
) -> Any:
    """What is known of the result of a step: an Executed, or a tuple of such."""
    if step.op == "getitem":
        return known[id(step.args[0])][step.args[1]]  # None of whole numbers
    if step.op == "_assert_tensor_metadata":  # beside a conversion; it has no value
        return None
    place = f" at {step.where}" if step.where else ""
    if step.computed:
        raise UnsupportedOpError(
            f"a weight of {step.op}{place} is computed in forward ({', '.join(step.computed)}), and its last bits "
            "differ between machines. Bake it in first, for instance with "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    if step.dtype not in (torch.float32, None):
        raise UnsupportedOpError(
            f"{step.op}{place} computes in {str(step.dtype).removeprefix('torch.')}; arithmetic='float32' is about "
            "models that compute in float32 throughout."
        )
    rule = find(step.op)
    if rule is None:
        raise UnsupportedOpError(
            f"the rounding of {step.op}{place} in float32 is not known: there is no rule for it. A bound for real "
            "arithmetic is still to be had."
        )
    args, kwargs = tree_map(
        lambda a: _operand(a, known), (step.args, step.kwargs), is_leaf=lambda a: isinstance(a, (Step, Constant))
    )
    arguments = _named(step.target, args, kwargs)
    values = step.value if isinstance(step.value, (tuple, list)) else (step.value,)
    real = [_real(v, boxes) for v in values]
    if real[0] is None:
        raise NumericsError(
            f"nothing is known of the values of {step.op}{place} on this domain, so neither is their rounding. Choose "
            "a smaller domain."
        )
    first = real[0]
    node = _node(step, network)
    call = Call(
        step.op, step.target, arguments, first, place, None if node is None else applied(node), _windows(node),
        history.refined,
    )  # fmt: skip
    _require_finite(call)
    try:
        result = rule(call)
    except LipcertError:
        raise
    except Exception as problem:  # a form of the op that the rule does not know
        raise call.unsupported(
            f"it is called in a form without a rule ({type(problem).__name__}: {problem})"
        ) from problem
    if not isinstance(step.value, (tuple, list)):
        return _checked(call, first, result, history)
    results = result if isinstance(result, (tuple, list)) else (result, *(None for _ in real[1:]))
    return tuple(None if b is None else _checked(call, b, r, history) for b, r in zip(real, results, strict=True))


def _operand(leaf: Any, known: Mapping[int, Any]) -> Any:
    if isinstance(leaf, Step):
        if known[id(leaf)] is None:
            raise UnsupportedOpError(f"{leaf.op} at {leaf.where} gives whole numbers, and something reads them.")
        return known[id(leaf)]
    if isinstance(leaf, Constant):
        return Executed.constant(leaf) if leaf.value.is_floating_point() else leaf.value
    return leaf


def _real(value: Any, boxes: tuple[Interval, ...]) -> Interval | None:
    """The box of a Var where it is finite; None of what is no float."""
    box = boxes[value.position] if isinstance(value, Var) else None
    return box if box is not None and bool(box.finite.all()) else None


def _named(target: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by the names of the op's schema."""
    names = [a.name for a in target._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _node(step: Step, network: Network) -> Node | None:
    """The node of the step's value, if its one parent is the value of the step's one operand that varies."""
    value = step.value[0] if isinstance(step.value, (tuple, list)) else step.value
    if not isinstance(value, Var):
        return None
    node = network.nodes[value.position]
    operands = tree_leaves((step.args, step.kwargs), is_leaf=lambda a: isinstance(a, Step))
    parents = {_position(a) for a in operands if isinstance(a, Step)}
    return node if len(parents) == 1 and parents == set(node.parents) else None


def _position(step: Step) -> int | None:
    return step.value.position if isinstance(step.value, Var) else None


def _windows(node: Node | None) -> Tensor | None:
    if isinstance(node, SelectionNode) and isinstance(node.function, MaxSelection):
        return node.function.index
    return None


def _require_finite(call: Call) -> None:
    for value in tree_leaves(call.arguments, is_leaf=lambda v: isinstance(v, Executed)):
        if isinstance(value, Executed) and not bool(value.reach.isfinite().all()):
            raise CaptureError(f"{call.op}{call.place} has an operand that is not finite")


def _checked(call: Call, box: Interval, outcome: Outcome, history: History) -> Executed:
    """The result; refused where its entries are not those of the real value or could not be held."""
    error = outcome.error()
    if error.shape != box.low.shape:
        raise call.unsupported("its result has another shape than its real value")
    if not bool(error.isfinite().all()):
        raise NumericsError(
            f"the rounding of {call.op}{call.place} cannot be bounded on this domain: it is not finite."
        )
    value = Executed(box, error, known_length=outcome.length())
    call.bounded(value.reach)
    history.add(value, outcome)
    return value
