"""The interference bound in its corrected form, beside what it bounds.

With X the update that was kept, G the update the task would make at λ = 0 and E the energy:

    |⟨X, W_past⟩_F|  ≤  ‖G‖_F / (2 √λ) · ‖E⁻¹ ⊙ W_past‖_F

which follows from X = G / (1 + λE²) and 1 + λE² ≥ 2√λ E. The paper (arXiv 2601.02232) prints
‖G‖²_F; that cannot hold, since scaling G by c scales the left side by c and ‖G‖² by c². For
E = |W_past| the last factor is the square root of the number of non-zero coordinates.

- implied: G = X (1 + λE²). Then the inequality is an identity check: it must hold.
- measured: G is an update trained with λ = 0 from the same start. X need not be its shrinkage,
  so the inequality can fail, and that it holds says something.
λ is Eq. 6's, with ½‖X − G‖² where training has the cross-entropy; the two are of one kind, not of
one unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ella_cli.adapter import Adapter
from ella_cli.errors import SettingsError, ShapeError
from ella_cli.inspect.curvature import Rise, rises_of
from ella_cli.inspect.overlap import common_modules, contained_as
from ella_cli.inspect.products import as_factors, cosine
from ella_cli.inspect.tiles import row_blocks
from ella_cli.kernels import Factors
from ella_cli.past import Past


@dataclass(frozen=True)
class Sums:
    """What one pass over a module's coordinates leaves; sums of several modules add up."""

    interference: float = 0.0  # ⟨X, W_past⟩
    reference_square: float = 0.0  # ‖G‖²
    support: float = 0.0  # ‖E⁻¹ ⊙ W_past‖²
    shrunk_interference: float = 0.0  # ⟨G / (1 + λE²), W_past⟩
    shrunk_square: float = 0.0  # ‖G / (1 + λE²)‖²
    update_square: float = 0.0  # ‖X‖²
    agreement: float = 0.0  # ⟨X, G / (1 + λE²)⟩

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.interference + other.interference,
            self.reference_square + other.reference_square,
            self.support + other.support,
            self.shrunk_interference + other.shrunk_interference,
            self.shrunk_square + other.shrunk_square,
            self.update_square + other.update_square,
            self.agreement + other.agreement,
        )


@dataclass(frozen=True)
class Bound:
    """One module, or all together.

    `tightness` is left / right: 1 is a bound that is reached, near 0 one that says nothing. It is
    None where the right side is 0. `agreement` is the cosine between the update and the
    shrinkage of the reference, 1 by construction where G is implied. `reason` says why the right
    side is infinite, where it is.
    """

    name: str
    lam: float
    reference: Literal["implied", "measured"]
    interference: float
    reference_norm: float
    support: float
    right_side: float
    holds: bool
    tightness: float | None
    shrunk_interference: float
    agreement: float | None
    reason: str = ""


def module_sums(
    update: Factors,
    energy: Tensor | Factors,
    signed: Tensor | Factors,
    lam: float,
    reference: Factors | None,
) -> Sums:
    """One pass over the module, in f64.

    Args:
        update: X = ΔW, (M, N).
        energy: what E is the magnitude of, (M, N).
        signed: W_past, (M, N); the same object as `energy` where E = |W_past|.
        lam: λ > 0.
        reference: G, (M, N); None takes the G that X implies.
    """
    sums = Sums()
    same = signed is energy
    signs = row_blocks(signed) if not same else None
    for rows, block in row_blocks(energy):
        past = block if signs is None else next(signs)[1]
        weight = 1 + lam * block.square()
        x = update.p[rows].double() @ update.q.double()
        g = x * weight if reference is None else reference.p[rows].double() @ reference.q.double()
        shrunk = x if reference is None else g / weight
        protected = block != 0
        # 0 / 0 counts nothing; anything else over 0 has no bound.
        open_ended = bool((past[~protected] != 0).any())
        sums += Sums(
            interference=float((x * past).sum()),
            reference_square=float(g.square().sum()),
            support=math.inf
            if open_ended
            else float((past[protected] / block[protected]).square().sum()),
            shrunk_interference=float((shrunk * past).sum()),
            shrunk_square=float(shrunk.square().sum()),
            update_square=float(x.square().sum()),
            agreement=float((x * shrunk).sum()),
        )
    return sums


def bound_of(name: str, lam: float, sums: Sums, *, measured: bool) -> Bound:
    reference_norm = math.sqrt(sums.reference_square)
    support = math.sqrt(sums.support)
    # An update of nothing keeps to any bound, an infinite one too.
    right = reference_norm / (2 * math.sqrt(lam)) * support if reference_norm else 0.0
    left = abs(sums.interference)
    return Bound(
        name=name,
        lam=lam,
        reference="measured" if measured else "implied",
        interference=sums.interference,
        reference_norm=reference_norm,
        support=support,
        right_side=right,
        # Both sides are f64 sums of up to 10^8 terms: equality is equality to rounding.
        holds=left <= right * (1 + 1e-9),
        tightness=left / right if right > 0 else None,
        shrunk_interference=sums.shrunk_interference,
        agreement=cosine(
            sums.agreement, math.sqrt(sums.update_square), math.sqrt(sums.shrunk_square)
        ),
        reason="infinite: E is 0 where W_past is not" if right == math.inf else "",
    )


@dataclass(frozen=True)
class BoundReport:
    adapter_task: str
    totals: tuple[Bound, ...]
    modules: tuple[Bound, ...]
    failing: int
    contained_as: str | None
    rises: tuple[Rise, ...] = ()


def bounds_of(
    adapter: Adapter, past: Past, lams: Sequence[float], reference: Adapter | None = None
) -> BoundReport:
    """The bound for each λ; `modules` are those of the first λ, each module read once a λ.

    Raises:
        SettingsError: no λ, or one that is not above 0, or infinite.
        ShapeError: adapter, reference and past do not fit.
    """
    if not lams or any(not 0 < lam < math.inf for lam in lams):
        shown = ", ".join(f"{lam:g}" for lam in lams) or "none"
        raise SettingsError(
            f"the bound needs a finite λ above 0, got {shown}",
            hint="give --lambda, for example the one that the next task will be trained with",
        )
    names = common_modules(adapter, past)
    if reference is not None:
        check_reference(adapter, names, reference)
    totals = []
    modules: list[Bound] = []
    for lam in dict.fromkeys(lams):
        whole = Sums()
        for name in names:
            sums = _sums_of(name, adapter, past, lam, reference)
            whole += sums
            if lam == lams[0]:
                modules.append(bound_of(name, lam, sums, measured=reference is not None))
        totals.append(bound_of("all modules", lam, whole, measured=reference is not None))
    return BoundReport(
        adapter_task=adapter.task,
        totals=tuple(totals),
        modules=tuple(modules),
        failing=sum(not one.holds for one in modules),
        contained_as=contained_as(adapter, past),
        rises=rises_of(adapter, past),
    )


def check_reference(adapter: Adapter, names: Sequence[str], reference: Adapter) -> None:
    """
    Raises:
        ShapeError: the reference lacks one of the modules, or adapts it in another shape.
    """
    for name in names:
        found = reference.shape(name) if name in reference.sources else None
        if found != adapter.shape(name):
            has = "does not adapt it" if found is None else f"has {found}"
            raise ShapeError(
                f"{adapter.path} has {adapter.shape(name)} at {name}, {reference.path} {has}",
                hint="the reference is the same task trained with λ = 0 from the same start",
            )


def trained_lambda(adapter: Adapter) -> tuple[float, ...]:
    """The λ of coordinates that the adapter was trained with, if that is known and not 0."""
    manifest = adapter.manifest or {}
    lam, settings = manifest.get("lambda"), manifest.get("settings") or {}
    energy = manifest.get("energy") or settings.get("energy")
    # O-LoRA's λ weighs something else, and so does curvature's.
    coordinates = manifest.get("method") in (None, "ella") and energy != "curvature"
    if not coordinates or not isinstance(lam, int | float) or lam <= 0:
        return ()
    return (float(lam),)


def _sums_of(
    name: str, adapter: Adapter, past: Past, lam: float, reference: Adapter | None
) -> Sums:
    operand = past.operand(name)
    return module_sums(
        as_factors(adapter.update(name)),
        operand,
        operand if past.record.energy.is_plain else past.delta(name),
        lam,
        None if reference is None else as_factors(reference.update(name)),
    )
