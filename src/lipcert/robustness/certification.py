"""What a run says: a row per example, accuracies at every radius, one file with all certificates."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, overload

import numpy as np

from lipcert.arguments import real
from lipcert.capture.load import Model
from lipcert.capture.model import Output
from lipcert.digits import at_least, at_most
from lipcert.errors import CertificateError, InputError, StoreError
from lipcert.figures import new_figure, saved
from lipcert.markup import tag
from lipcert.robustness.checks import Facts
from lipcert.robustness.examples import Examples
from lipcert.robustness.executed import Arithmetic, arithmetic_of
from lipcert.robustness.pair_constants import BODY, OUTPUTS
from lipcert.robustness.rows import Row
from lipcert.robustness.schedule import FARTHEST
from lipcert.robustness.store import Store
from lipcert.robustness.threat import Threat
from lipcert.robustness.verification import capture_in_units, restored, verify_row

#: How the table names the arithmetic.
_IN = {"real": "in real arithmetic", "float32": "as torch runs it in float32 on a CPU"}


class Certification(Sequence[Row]):
    """One row per example, in order; made by ``lipcert.certify``, or read from its file by ``Certification.load``.

    ``print`` it for the table. What is certified is a statement about the network in real arithmetic: within
    ``certified_radius`` no input that the threat allows has another class; or, with ``arithmetic`` float32, about the
    network that torch runs in float32 on a CPU, and the float32 tensors among these inputs. Counter-examples are of the
    real-valued network in both.

    Attributes:
        threat: norm, radii, limits and units.
        arithmetic: ``real`` or ``float32``.
        seconds: wall time of the run that made it; nan where it was read from a file.
    """

    def __init__(self, store: Store, seconds: float = math.nan) -> None:
        self._store, self.seconds = store, seconds
        try:
            self._about = store.about
            settings = json.loads(self._about["settings"])
            self.threat = Threat.from_json(settings["threat"])
            self.arithmetic: Arithmetic = arithmetic_of(settings.get("arithmetic", "real"), self.threat)
            self._shape = tuple(int(n) for n in json.loads(self._about["shape"]))
            count = int(self._about["count"])
            self._rows = list(store.rows())
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"{store.where} is no file of a certification run: {error}") from error
        finally:
            store.rest()
        if [row.index for row in self._rows] != list(range(count)):
            raise StoreError(
                f"{store.where} holds {len(self._rows)} of {count} examples: the run was not finished. Call "
                f"lipcert.certify with the same arguments and resume={store.where!r}."
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self._shape

    @classmethod
    def load(cls, path: str | Path) -> Certification:
        """Read what ``save`` wrote, or the file of a finished run; nothing in it is executed.

        Of a run that was to take up open examples with more time, and did not come to all, the others are as they were.

        Raises:
            StoreError: missing, damaged, something else, or of a run that was not finished.
        """
        return cls(Store.read(path))

    # -- rows ------------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the network that was certified, normalisation included."""
        return self._about["model"]

    @property
    def clean_accuracy(self) -> float:
        """Share of the examples whose class is right."""
        return self._share(row.status != "wrong" for row in self)

    def certified_accuracy(self, radius: float | None = None) -> float:
        """Share of the examples that keep their right class within ``radius``, proved.

        With given radii it is 0 beyond the largest of them, as nothing was tried there.

        Args:
            radius: None: the largest asked for.
        """
        at = self._radius(radius)
        return self._share(row.status_at(at) == "certified" for row in self)

    def attacked_accuracy(self, radius: float | None = None) -> float:
        """Share of the examples that the attack leaves: right, and no counter-example found within ``radius``.

        The true share lies between ``certified_accuracy`` and this.
        """
        at = self._radius(radius)
        return self._share(row.attacked_radius > at for row in self)

    def _share(self, hits: Any) -> float:
        return sum(bool(h) for h in hits) / len(self._rows)

    def _radius(self, radius: float | None) -> float:
        if radius is not None:
            value = real(radius)
            if not value >= 0.0:
                raise InputError(f"radius must be a number from 0, not {radius!r:.60}.")
            return value
        if self.threat.radii is None:
            raise InputError("this run looked for the largest radius of each example: say at which radius.")
        return self.threat.radii[-1]

    # -- reports ---------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return tag("pre", self.table())

    def table(self, rows: int = 0) -> str:
        """Accuracies by radius, what decided, and as many rows of single examples as asked for.

        Args:
            rows: how many of the examples to list.
        """
        lines = [
            *wrap(f"{len(self)} examples of {'×'.join(map(str, self._shape))}; {self.threat.describe()}", 96),
            f"network {self.fingerprint[:12]}…, {_IN[self.arithmetic]}; "
            f"clean accuracy {100 * self.clean_accuracy:.1f} %",
            "",
            f"{'radius':>10}{'certified':>12}{'attacked':>11}{'open':>8}{'wrong':>8}{'attack leaves':>16}",
        ]
        for radius in self._shown_radii():
            at = Counter(row.status_at(radius) for row in self)
            parts = [1000 * at[name] / len(self) for name in ("certified", "attacked", "open", "wrong")]
            ends = [
                math.floor(parts[0]),
                *(round(p) for p in parts[1:]),
                math.ceil(1000.0 * self.attacked_accuracy(radius)),
            ]
            shown = [f"{end / 10:.1f} %" for end in ends]
            widths = (12, 11, 8, 8, 16)
            lines.append(
                f"{at_least(radius, 4):>10}" + "".join(f"{s:>{w}}" for s, w in zip(shown, widths, strict=True))
            )
        lines += ["", *self._facts()]
        if rows:
            lines += ["", *self._listed(rows)]
        return "\n".join(lines)

    def _shown_radii(self) -> list[float]:
        if self.threat.radii is not None:
            return list(self.threat.radii)
        found = sorted(row.certified_radius for row in self if row.certified_radius > 0)
        if not found:
            return []
        marks = [float(f"{q:.2g}") for q in np.quantile(found, [0.1, 0.25, 0.5, 0.75, 0.9], method="lower")]
        return sorted(set(marks))

    def _facts(self) -> list[str]:
        proofs = Counter(row.method for row in self if row.certified_radius > 0)
        kinds = Counter(row.guarantee for row in self if row.certified_radius > 0)
        facts = []
        if proofs:
            facts.append("certified radii by " + _counted(proofs))
            facts.append("guarantee: " + _counted(kinds))
        radii = [row.certified_radius for row in self if row.status != "wrong"]
        if self.threat.radii is None and radii:
            facts.append(
                f"median certified radius of what is classified rightly: {at_least(float(np.median(radii)), 4)}"
            )
        if self.arithmetic != "real" and any(0.0 < row.attacked_radius < math.inf for row in self):
            facts.append("counter-examples are of the network in real arithmetic")
        if not math.isnan(self.seconds):
            facts.append(f"{self.seconds:.1f} s")
        return facts

    def _listed(self, count: int) -> list[str]:
        head = (
            f"{'index':>6} {'label':>5} {'class':>5} {'status':<10}{'certified':>10}{'attacked':>10}{'margin':>11} "
            f"{'method':<20}{'guarantee':<13}{'s':>6}"
        )
        lines = [head]
        for r in self._rows[:count]:
            certified, attacked = at_least(r.certified_radius, 4), at_most(r.attacked_radius, 4)
            lines.append(
                f"{r.index:>6} {r.label:>5} {r.predicted:>5} {r.status:<10}{certified:>10}{attacked:>10}"
                f"{at_least(r.margin, 4):>11} {r.method:<20}{r.guarantee or '-':<13}{r.seconds:>6.2f}"
            )
        return lines

    def curve(self) -> tuple[list[float], list[float], list[float]]:
        """Radii, certified accuracies and attacked accuracies, at every radius where one of them changes."""
        radii = {0.0, *(self.threat.radii or ())}
        radii |= {row.certified_radius for row in self}
        radii |= {row.attacked_radius for row in self if math.isfinite(row.attacked_radius)}
        ordered = sorted(radii)
        return (
            ordered,
            [
                self.certified_accuracy(r) if r > 0 else min(self.clean_accuracy, self.attacked_accuracy(r))
                for r in ordered
            ],
            [self.attacked_accuracy(r) for r in ordered],
        )

    def drawn_curve(self) -> tuple[list[float], list[float], list[float]]:
        """``curve`` up to the largest radius given; where any radius is proved, it ends a little beyond the others."""
        points = list(zip(*self.curve(), strict=True))
        if self.threat.radii is not None:
            points = [point for point in points if point[0] <= self.threat.radii[-1]]
        last, proved, left = points[-1]
        if last >= FARTHEST:
            points[-1] = (1.05 * points[-2][0] or 1.0, proved, left)
        radii, certified, attacked = map(list, zip(*points, strict=True))
        return radii, certified, attacked

    def plot(self, path: str | Path | None = None) -> Any:
        """Both accuracies against the radius; the truth lies between them.

        Args:
            path: where to save the picture, if anywhere.

        Returns:
            The ``matplotlib`` figure.

        Raises:
            InputError: matplotlib is not installed.
        """
        radii, certified, attacked = self.drawn_curve()
        figure, axes = new_figure()
        steps: dict[str, Any] = {"drawstyle": "steps-pre"}
        axes.plot(radii, [100 * a for a in attacked], color="tab:orange", label="left by the attack", **steps)
        axes.plot(radii, [100 * a for a in certified], color="tab:blue", label="certified", **steps)
        axes.fill_between(
            radii, [100 * a for a in certified], [100 * a for a in attacked], step="pre", color="0.9", label="open"
        )
        axes.set(xlabel=f"radius (l{self.threat.norm:g})", ylabel="examples, %", ylim=(0, 100), xlim=(0, None))
        axes.legend()
        return saved(figure, path)

    def to_json(self) -> dict[str, Any]:
        """Everything but certificates, for machines."""
        return {
            "threat": self.threat.to_json(),
            "network": self.fingerprint,
            "arithmetic": self.arithmetic,
            "clean_accuracy": self.clean_accuracy,
            "radii": [
                {
                    "radius": radius,
                    "certified_accuracy": self.certified_accuracy(radius),
                    "attacked_accuracy": self.attacked_accuracy(radius),
                }
                for radius in self._shown_radii()
            ],
            "rows": [row.to_json() for row in self],
        }

    # -- certificates ----------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write rows and all certificates into one file, which appears whole or not at all.

        Raises:
            StoreError: it cannot be written, or another run has added to the file that these rows are of.
        """
        try:
            if self._store.about != self._about:
                raise StoreError(f"{self._store.where} was changed after it was read: load it again to save its rows.")
            self._store.copy(path)
        finally:
            self._store.rest()

    def verify(self, model: Model, inputs: Any = None, labels: Any = None, output: Output = None) -> Certification:
        """Prove every certified radius again, and look at every counter-example.

        The file holds the examples that something is claimed of, so the data are not needed. Rows that claim nothing
        (open, wrong) are not looked at; with the data, and in real arithmetic, wrong ones are.

        Args:
            model: the model, without the normalisation that was given as ``scale``.
            inputs, labels: the data, to be told that the file is about them.
            output: as for ``certify``.

        Returns:
            This object.

        Raises:
            CertificateError: of another model or other data, or a row is not proved; it says which.
        """
        network, rounding = capture_in_units(model, self.threat, self._shape, self.arithmetic, output)
        if network.fingerprint != self.fingerprint:
            raise CertificateError(
                f"these certificates are for another model: they name network {self.fingerprint[:12]}…, the model "
                f"given is {network.fingerprint[:12]}…"
            )
        data = None if inputs is None else Examples.of(inputs, [r.label for r in self] if labels is None else labels)
        if data is not None and (len(data) != len(self) or data.sha256 != self._about["data"]):
            raise CertificateError("these certificates are of other data than those given.")
        try:
            kept = {name: self._store.shared(name) for name in (BODY, OUTPUTS)}
            constants = restored(kept, network, self.threat.norm)
            facts = Facts(network, self.threat, constants, rounding)
            proved = 0
            for place, decision in enumerate(self._store.decisions()):
                if decision.row not in self._rows[place : place + 1]:
                    raise CertificateError(f"row {decision.row.index}: the file was changed after it was read.")
                try:
                    verify_row(decision, facts, data)
                except CertificateError as reason:
                    raise CertificateError(f"row {decision.row.index}: {reason}") from reason
                proved += 1
            if proved != len(self):
                raise CertificateError(
                    f"the file was changed after it was read: {proved} of {len(self)} rows are left."
                )
        finally:
            self._store.rest()
        return self


def _counted(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
