"""LipSDP where layers are too wide to factor: multipliers with a margin for a Lanczos check, found by passes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipcert.certificates.forms.matrix_free import ScaledMap
from lipcert.certificates.forms.quadratic_form import Weights
from lipcert.errors import NotProved
from lipcert.increments import Cell, ScaledIncrements
from lipcert.methods.base import Found, Run
from lipcert.methods.cost import SWEEP, free_memory, seconds_of
from lipcert.methods.lipsdp_finish import FEWEST, Finish
from lipcert.network.linear import size
from lipcert.numerics.lanczos import lambda_max_ritz
from lipcert.numerics.probabilistic import kuczynski_wozniakowski_epsilon
from lipcert.problem import Norm
from lipcert.search.passes import Passes, steps_to_output
from lipcert.search.vector_neuron import DEAD, VectorNeuron

#: Geometric lifts tried on top of the check's own margin: they make up for an iteration that has not converged.
LIFTS = (
    1e-4,
    3e-4,
    1e-3,
    2e-3,
    3e-3,
    4e-3,
    6e-3,
    1e-2,
    1.5e-2,
    2e-2,
    3e-2,
    4e-2,
    6e-2,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    4.0,
    9.0,
)

#: Where multipliers need a larger lift than this when the iteration has settled, it goes on with twice the columns,
#: up to MOST_COLUMNS; lifts are tried from FINEST on. It has settled when 20 passes gain less than SETTLED.
FINEST, FINE, MOST_COLUMNS, SETTLED = 3e-4, 1e-3, 128, 3e-4

#: Columns to start with on networks with more entries of (x, w) than this, if there is time.
SMALL, MANY_COLUMNS = 20_000, 64

#: ‖G‖² beyond which single neurons are looked at, and a search in float32 is taken on in float64.
GROSS = 1.1

#: Squared norm of a row or column of G, by random probes, beyond which its neuron's multiplier is set anew.
STANDS_OUT = 1.2

#: Lanczos steps of a look at one lift; most and fewest steps of the check.
LOOK, MOST, LEAST = 30, 400, 22

#: Probability of error that the check is expected to have for one form, at the least.
_DELTA = 1e-11


@dataclass(frozen=True)
class FreeEffort:
    """What a matrix-free check will do, fixed before the search because the search leaves it its margin.

    Attributes:
        steps: Lanczos steps.
        margin: the check needs ‖G‖² ≤ 1 − margin: more than its relative error at so many steps.
        seconds: what one application of GᵀG takes.
        forms, size: number of forms, and of entries of (x, w).
        most: most steps, for memory and because more gain nothing.
        obstacle: why there is no time or memory for it; None if there is.
    """

    steps: int
    margin: float
    seconds: float
    forms: int
    size: int
    most: int
    obstacle: str | None

    @classmethod
    def of(cls, exact: ScaledIncrements, norm: Norm, run: Run) -> FreeEffort:
        """The most steps, up to MOST, that take at most half of the seconds there are, and fit in memory."""
        network = exact.increments
        ones = {c.node: torch.ones(c.groups, dtype=torch.float64) for c in exact.cells}
        plain = Weights(*(torch.ones(size(s), dtype=torch.float64) for s in (network.in_shape, network.out_shape)))
        scaled = ScaledMap(exact, ones, plain, 1.0)
        start = torch.ones(scaled.size, dtype=torch.float64)
        scaled.gram(start)
        one = seconds_of(lambda: scaled.gram(start))
        forms, n = size(network.out_shape) if norm[1] == math.inf else 1, scaled.size
        room = int(free_memory() / (12.0 * n)) if n else 0
        effort = cls(0, 0.0, one, forms, n, min(MOST if n <= 300_000 else 240, max(n, 1), max(room, 1)), None)
        least = min(LEAST, effort.most)
        needed = effort.check(least) + (0.3 * forms * LOOK + 12.0) * one
        if room < LEAST <= n:
            why = f"its matrix-free check needs about {12e-9 * n * LEAST:.1f} GB of memory"
            effort = replace(effort, obstacle=why)
        elif run.checked and needed > run.left:
            why = f"its matrix-free check would take about {needed:.0f} s; raise budget="
            effort = replace(effort, obstacle=why)
        return effort.within(0.45 * run.left if run.checked else math.inf)

    def check(self, steps: int) -> float:
        """Seconds of the check of all forms: products with GᵀG, and keeping the basis orthogonal."""
        return self.forms * (steps * self.seconds + SWEEP * self.size * steps**2 / 2.0)

    def within(self, seconds: float) -> FreeEffort:
        """As many steps as take so many seconds, but no fewer than LEAST."""
        steps = self.most
        while steps > LEAST and self.check(steps) > seconds:
            steps -= 10
        n = self.size
        epsilon = kuczynski_wozniakowski_epsilon(n, steps, _DELTA / self.forms) if 0 < steps < n else 0.0
        return replace(self, steps=steps, margin=min(0.8, 1.1 * epsilon + 1e-9))

    @property
    def growth(self) -> float:
        """By how much neurons may grow, if the multipliers of the grown network are to leave the margin.

        Σ λ w² and ρ‖x‖² count (1 − margin) times: as if |w| ≤ |v|/√(1 − margin).
        """
        return 1.0 / math.sqrt(1.0 - self.margin)


@dataclass(eq=False)
class FreeFinish(Finish):
    """Probabilistic: ‖G‖ ≤ 1 by Lanczos, G being the network scaled by the multipliers."""

    effort: FreeEffort
    _factors: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    look: float = 0.0  # seconds of one step of a look, in the search's precision

    def check_seconds(self) -> float:
        """The check itself, and the looks at lifts before it."""
        return self.proof_seconds() + 1.5 * self.search.problems * LOOK * self.look

    def proof_seconds(self) -> float:
        """The check itself."""
        return 1.1 * self.effort.check(self.effort.steps)

    def short(self) -> bool:
        """As for the dense route; without a check that has to fit, 60 % of the budget are for the search."""
        return super().short() if self.run.checked else self.run.left <= 0.4 * self.run.budget

    def __post_init__(self) -> None:
        """As many columns as leave time and memory for FEWEST passes: large networks need more than small ones.

        With too few the iteration ends in a point whose multipliers do not hold, however long it runs.
        """
        self.search.step()
        one = seconds_of(self.search.step) / self.search.columns
        self.look = min(2.0 * one, self.effort.seconds)
        seconds = 0.8 * (self.run.left - self.check_seconds() if self.run.checked else 0.6 * self.run.left)
        room = free_memory() / (8.0 * torch.finfo(self.search.network.dtype).bits / 8.0 * max(self.effort.size, 1))
        wanted = self.search.columns if self.effort.size < SMALL else MANY_COLUMNS
        while wanted > self.search.columns and (FEWEST * one * wanted > seconds or wanted > room):
            wanted //= 2
        if wanted > self.search.columns and self.options.start is None:
            old = self.search
            self.search = VectorNeuron(old.network, old.norm, wanted, self.run.generator, growth=self.effort.growth)

    def found(self) -> Found:
        """Passes, with more columns while few prove too few; then the least lift that holds."""
        forms = range(self.search.problems)
        while self._settled() and self.search.columns < MOST_COLUMNS:
            if not bool((self.search.rho > 0).all()):
                break
            if all(self._ritz(form, FINE) <= 1.0 - self.effort.margin for form in forms) or self.short():
                break
            self.search.widen(2 * self.search.columns)
        if not bool((self.search.rho > 0).all()):
            raise NotProved("the network looks constant in float arithmetic; use autolip.")
        self._spend_the_rest()
        if any(self._ritz(form, FINE) > GROSS for form in forms):
            self._refine()
        return self._packaged([self._place(form) for form in forms])

    def _settled(self) -> bool:
        """Passes until they gain next to nothing (True), or until time or passes run out (False)."""
        last, start = self.search.rho, self.search.passes
        while self.search.passes < self.options.max_passes:
            going = self.passes(20)
            if self.short():
                return False
            value = self.search.rho
            if self.search.passes >= start + 60 and bool((value < last * (1.0 + SETTLED)).all()):
                return True
            if not going and self.search.passes >= self.options.max_passes:
                return False
            last = value
        return False

    def _spend_the_rest(self) -> None:
        """A search that settled early leaves time for a longer check, so for a smaller margin and a few more passes."""
        if not self.run.checked:
            return
        began, passes = self.run.left, 10
        effort = self.effort.within(0.8 * (self.run.left - 1.5 * self.search.problems * LOOK * self.look))
        if effort.margin > 0.8 * self.effort.margin:
            return
        self.effort = effort
        self.search.grow(effort.growth)
        for _ in range(passes):
            self.search.step()
        one = (began - self.run.left) / passes
        while passes < FEWEST and self.run.left - 5.0 * one > self.check_seconds():
            for _ in range(5):
                self.search.step()
            passes += 5

    def _refine(self) -> None:
        """Multipliers that do not hold at all: more passes in float64, then neuron by neuron what still sticks out.

        float32 loses neurons whose v or h is 1e-7 of the others'; their ratio is noise, and the form is violated there
        whatever the lift.
        """
        if self.search.network.dtype == torch.float32:
            fine = replace(self.search.network, dtype=torch.float64)
            growth, passes = self.effort.growth, self.search.passes
            self.search = VectorNeuron(
                fine, self.search.norm, self.search.columns, self.run.generator, self.search.state, growth
            )
            self.search.passes = passes
            for _ in range(30):
                self.search.step()
                if self.short() and self.search.passes >= passes + 5:
                    break
        for form in range(self.search.problems):
            for _ in range(8):
                if self._ritz(form, FINE) <= GROSS:
                    break
                self._mend(form)

    def _mend(self, form: int) -> None:
        """Multipliers of single neurons that alone make ‖G‖ > 1 are set where they stick out least.

        Column w_j of G has squared norm (what the network makes of w_j)/λ_j, row v_j has λ_j (what makes v_j up): λ_j
        has to lie between the two, and its geometric middle makes them equal.
        """
        rows, columns = self._look(form, FINE).squared_norms(self.run.generator)
        known = self._factors.setdefault(form, {})
        for cell in self.exact.cells:
            above, below = columns[cell.node], rows[cell.node]
            if cell.block:
                pair = (t.reshape(cell.groups, -1) for t in (above, below))
                above, below = (t.amax(dim=1) if t.numel() else t.new_ones(cell.groups) for t in pair)
            outside = torch.maximum(above, below) > STANDS_OUT
            middle = (above.clamp(min=1e-100) / below.clamp(min=1e-100)).sqrt()
            factor = torch.where(outside, middle, 1.0)
            known[cell.node] = known.get(cell.node, torch.ones_like(above)) * factor

    def _look(self, form: int, p: float) -> Look:
        scaled = ScaledMap(self.exact, self._positive(form, p), self.weights(form), self._rho(form, p))
        return Look(self.search.network, scaled)

    def _ritz(self, form: int, p: float) -> float:
        """‖G‖² at this lift as a short Lanczos run sees it; the check needs 1 − margin."""
        self.run.report(0.9, f"lift {p:.1e}")
        return self._look(form, p).greatest(LOOK, self.run.generator)

    def _place(self, form: int) -> int:
        """The least lift that holds, or about so: a lift p divides ‖G‖² by up to 1 + p."""
        place = LIFTS.index(FINEST)
        goal = 1.0 - self.effort.margin
        while place < len(LIFTS) - 1:
            p = LIFTS[place]
            ritz = self._ritz(form, p)
            if ritz <= goal:
                break
            needed = 0.8 * ((1.0 + p) * ritz / goal - 1.0)
            place = min((i for i, q in enumerate(LIFTS) if i > place and q >= needed), default=len(LIFTS) - 1)
            if self.run.checked and self.run.left < 1.2 * self.effort.check(self.effort.steps):
                break
        return place

    def _packaged(self, places: list[int]) -> Found:
        def weaker() -> Found | None:
            coarser = [place + 2 for place in places]
            late = self.run.checked and self.run.left < self.effort.check(self.effort.steps)
            return None if late or max(coarser) >= len(LIFTS) else self._packaged(coarser)

        lifts = [LIFTS[place] for place in places]
        return self.package(
            [self._positive(form, p) for form, p in enumerate(lifts)],
            [self._rho(form, p) for form, p in enumerate(lifts)],
            [0.0] * len(lifts), "matrix_free", weaker, steps=self.effort.steps,
        )  # fmt: skip

    def _rho(self, form: int, p: float) -> float:
        steps = max(steps_to_output(self.exact).values(), default=0)
        return float(self.search.rho[form]) * (1.0 + p) ** (steps + 1) / (1.0 - self.effort.margin)

    def _positive(self, form: int, p: float) -> dict[int, Tensor]:
        lifted = self.lifted(form, p)
        factors = self._factors.get(form, {})
        result = {}
        for k, m in lifted.items():
            if not bool(torch.isfinite(m).all()):
                raise NotProved("the multipliers overflow; rescale the network's weights.")
            top = max(float(m.max()), 1e-100)
            positive = torch.where(m < 0, torch.full_like(m, _free(m, top)), m.clamp(min=1e-30 * top))
            result[k] = (positive * factors[k]).clamp(1e-250, 1e250) if k in factors else positive
        return result


def _free(multipliers: Tensor, top: float) -> float:
    """For neurons without a v: it costs nothing, so as large as is harmless to floats."""
    assert DEAD < 0 <= top
    return 1e3 * top


class Look:
    """G at given multipliers in the search's own precision: for looks, which prove nothing; several times as fast."""

    def __init__(self, search: Passes, scaled: ScaledMap) -> None:
        self.network, self.sizes, self.size = search, scaled.sizes, scaled.size
        cells = search.scaled.cells

        def cast(t: Tensor) -> Tensor:
            return t.to(search.device, search.dtype)

        self.scale, self.output = cast(scaled.scale), cast(scaled.output.sqrt())
        self.out = {node: cast(out) for node, out in scaled.out.items()}
        self.c = {cell.node: cast(cell.c) for cell in cells}
        self.d = {cell.node: cast(cell.d) for cell in cells}
        self.block = {cell.node: number + 1 for number, cell in enumerate(cells)}

    def images(self, vectors: Tensor) -> dict[int, Tensor]:
        """G on a batch (B, size): the parts at every v, by node, and at the output, by −1."""
        pieces = torch.split(vectors * self.scale, self.sizes, dim=1)
        result: dict[int, Tensor] = {}

        def output(cell: Cell, v: Tensor) -> Tensor:
            result[cell.node] = v * self.out[cell.node]
            w = pieces[self.block[cell.node]].reshape(len(vectors), *cell.shape)
            return (
                self.d[cell.node] * w if v.shape[1:] != w.shape[1:] else self.c[cell.node] * v + self.d[cell.node] * w
            )

        shape = self.network.scaled.increments.in_shape
        values = self.network.forward(pieces[0].reshape(len(vectors), *shape), output)
        result[-1] = self.output * values[-1]
        return result

    def pulled(self, vectors: Tensor, weight: Callable[[Tensor], Tensor]) -> tuple[dict[int, Tensor], Tensor]:
        """The images of ``vectors``, and Gᵀ on the images' ``weight``."""
        with torch.enable_grad():
            leaf = vectors.detach().clone().requires_grad_(True)
            images = self.images(leaf)
            parts = [(image * weight(image.detach())).sum() for image in images.values()]
            whole = sum(parts[1:], parts[0])
            gradient = torch.autograd.grad(whole, leaf)[0] if whole.requires_grad else torch.zeros_like(leaf)
        return {node: image.detach() for node, image in images.items()}, gradient

    def greatest(self, steps: int, generator: torch.Generator) -> float:
        """‖G‖², about, and from below."""

        def gram(x: Tensor) -> Tensor:
            return self.pulled(x.to(self.scale)[None], lambda image: image)[1][0].to(x)

        try:
            return lambda_max_ritz(gram, self.size, min(steps, self.size), generator, dtype=self.scale.dtype)[0]
        except ValueError:  # out of range in this precision: far from feasible
            return math.inf

    def squared_norms(
        self, generator: torch.Generator, probes: int = 16
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Squared norms of G's rows at every v and of its columns at every w, as random probes see them (±35 %).

        E (Gz)_i² is the squared norm of row i for z of independent normal entries; columns are the rows of Gᵀ.
        """

        def random(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

        images, gradient = self.pulled(random(self.scale.expand(probes, -1)), random)
        rows = {node: image.square().mean(dim=0).reshape(-1).double().cpu() for node, image in images.items()}
        columns = torch.split(gradient.square().mean(dim=0).double().cpu(), self.sizes)
        return rows, {node: columns[number] for node, number in self.block.items()}
