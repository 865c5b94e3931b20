"""What a task's answers depend on, kept beside its adapter: `curvature.safetensors`.

Per adapted module two factors, `<module>.U` (M, K) and `<module>.V` (N, K'), and two floors in the
record, with G = U Uᵀ + γ I and C = V Vᵀ + κ I; and directions `<module>.R` (D, k, k') in the basis
of the leading columns. ½ tr(ΔWᵀ G ΔW C), summed over modules, and ½ ‖s‖² with s = Σ R · vec(UᵀΔW V)
over modules are together the expected rise of that task's loss in nats per answer token when ΔW is
added to the weights.
docs/file-formats.md specifies the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ella_cli.adapter.adapter import layers_in_order
from ella_cli.adapter.curvature_record import (
    DIRECTIONS_VERSION,
    IMPORTANCE_VERSION,
    CurvatureRecord,
    check_known,
    curvature_digest,
)
from ella_cli.adapter.tensor_file import FLOATS, TensorFile, bytes_of
from ella_cli.adapter.tensor_header import Entry
from ella_cli.errors import AdapterError, EllaError
from ella_cli.kernels import Kronecker

if TYPE_CHECKING:
    from torch import Tensor

LETTERS = "UVR"


@dataclass(frozen=True, eq=False)
class Curvature:
    """One task's curvature, in a file of its own or inside a past; read when asked for.

    Attributes:
        keys: module -> the names of U, V and, where it has directions, R in the file.
        ranks: columns used of each U and of each V, of the largest eigenvalues; None for all.
    """

    record: CurvatureRecord
    file: TensorFile = field(repr=False)
    keys: Mapping[str, tuple[str, ...]] = field(repr=False)
    ranks: tuple[int, int] | None = None
    _verified: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.keys)

    @property
    def directions(self) -> int:
        """How many there are, the same of every module that has any."""
        counts = [self.entry(r).shape[0] for _, _, *rs in self.keys.values() for r in rs]
        return max(counts, default=0)

    @property
    def basis(self) -> int:
        """Columns of a factor that its directions are kept in, where they are the most."""
        bases = [self.entry(r).shape[1:] for _, _, *rs in self.keys.values() for r in rs]
        return max(map(max, bases), default=0)

    @property
    def nbytes(self) -> int:
        return sum(self.entry(key).nbytes for keys in self.keys.values() for key in keys)

    def entry(self, key: str) -> Entry:
        """Dtype and shape of a factor, or of directions, as they are used."""
        stored = self.file.entries[key]
        used = (len(range(n)[cut]) for n, cut in zip(stored.shape, self._cuts(key), strict=True))
        return Entry(stored.dtype, tuple(used))

    def factor(self, key: str) -> Tensor:
        """(M or N, K), or directions (D, K, K'), in the file's dtype."""
        return self.file.read(key)[*self._cuts(key)].contiguous()

    def _cuts(self, key: str) -> list[slice]:
        """Which columns are used of U, of V, or of R in both, and which of its directions."""
        of_u, of_v = (slice(rank) for rank in self.ranks or (None, None))
        match key.rpartition(".")[2]:
            case "U":
                return [slice(None), of_u]
            case "V":
                return [slice(None), of_v]
            case _:
                return [slice(self._most_directions), of_u, of_v]

    @cached_property
    def _most_directions(self) -> int | None:
        """Of the largest, where columns were cut: those that take no more room than U and V do."""
        if self.ranks is None:
            return None
        factors = basis = 0
        for u_key, v_key, *rs in self.keys.values():
            (m, of_u), (n, of_v) = self.entry(u_key).shape, self.entry(v_key).shape
            factors += m * of_u + n * of_v
            for r in rs:
                _, rows, columns = self.file.entries[r].shape
                basis += min(rows, of_u) * min(columns, of_v)
        return max(1, factors // max(basis, 1))

    def truncated(self, of_u: int, of_v: int) -> Curvature:
        """The same with at most so many columns of U and of V, and the directions within them.

        Of the directions as many as take no more room than the columns that are left.

        What the others held of G and C is spread evenly, so that the traces stay; the record says
        how much.

        Raises:
            AdapterError: it is damaged.
        """
        dropped, floors = {}, {}
        for name, (u_key, v_key, *_) in self.keys.items():
            tails = zip(self.tails(name), (of_u, of_v), strict=True)
            g, c = (tail[min(rank, len(tail) - 1)] for tail, rank in tails)
            dropped[name] = (g, c)
            u = _each_past(self.factor(u_key), of_u)
            v = _each_past(self.factor(v_key), of_v)
            gamma, kappa = self.record.floors_of(name)
            floors[name] = (gamma + u, kappa + v)
        record = replace(self.record, dropped=dropped).with_floors(floors)
        less = replace(self, ranks=(of_u, of_v), record=record)
        return replace(less, record=replace(record, digest=_digest(less)))

    def tails(self, name: str) -> tuple[list[float], list[float]]:
        """Of G and of C: the share of the trace past 0, 1, 2, … columns, cut off ones included.

        Raises:
            AdapterError: the file is damaged.
        """
        self.verify()
        before = self.record.dropped.get(name, (0.0, 0.0))
        g, c = (
            [1 - (1 - old) * (1 - share) for share in _shares_past(self.factor(key))]
            for old, key in zip(before, self.keys[name][:2], strict=True)
        )
        return g, c

    def shape(self, name: str) -> tuple[int, int]:
        """(M, N) of the updates it judges."""
        u, v, *_ = self.keys[name]
        return self.file.entries[u].shape[0], self.file.entries[v].shape[0]

    def kronecker(self, name: str, task: int = 0) -> Kronecker:
        """The factors and directions of one of its modules, f32.

        Args:
            task: tells the directions of several tasks apart.

        Raises:
            AdapterError: the file's factors are not what its digest says.
        """
        self.verify()
        u, v, *r = (self.factor(key).float() for key in self.keys[name])
        return Kronecker(u, v, *self.record.floors_of(name), r[0] if r else None, task)

    def verify(self) -> None:
        """Reads all factors, once.

        Raises:
            AdapterError: the factors are not what the digest says, or not finite.
        """
        if self._verified:
            return
        if _digest(self) != self.record.digest:
            raise AdapterError(
                f"{self.file.path}: the curvature of {self.record.task} does not match its digest "
                f"{self.record.digest[:12]}…",
                hint="the file is damaged; make it again with `ella measure`",
            )
        for name, keys in self.keys.items():
            if not all(bool(self.file.read(key).isfinite().all()) for key in keys):
                raise AdapterError(
                    f"{self.file.path}: the curvature of {name} is not finite",
                    hint="measure it again with `ella measure`, or take the file away",
                )
        self._verified.add(self.record.digest)


def curvature_keys(
    file: TensorFile, keys: Mapping[str, Any], prefix: str, error: type[EllaError]
) -> dict[str, tuple[str, ...]]:
    """Module -> names of U, V and perhaps R: the tensors of `file` in `keys`, behind `prefix`.

    Raises:
        error: a factor without its other, one that is no float matrix, or directions that are not
            in its columns.
    """
    modules = sorted({key[len(prefix) : -2] for key in keys}, key=layers_in_order)
    found = {
        name: tuple(
            f"{prefix}{name}.{letter}"
            for letter in LETTERS
            if letter != "R" or f"{prefix}{name}.R" in keys
        )
        for name in modules
    }
    expected = {key for names in found.values() for key in names}
    wrong = sorted(expected ^ set(keys))
    if not wrong:
        wrong = [names[-1] for names in found.values() if not _fits(file, names)]
    if not wrong:
        # One number a direction is summed over modules.
        counts = {file.entries[r].shape[0]: r for _, _, *rs in found.values() for r in rs}
        wrong = list(counts.values())[1:]
    if wrong:
        raise error(
            f"{file.path}: the tensor {wrong[0][:100]} is not what a curvature holds",
            hint="the file was changed by hand; make it again with `ella measure`",
        )
    return found


def check_version(curvature: Curvature, error: type[EllaError]) -> None:
    """
    Raises:
        error: the record's version is none, or one that has no directions, and there are some, or
            no importance.
    """
    record, where = curvature.record, curvature.file.path
    check_known(record, where, error)
    if record.importance != 1 and record.version < IMPORTANCE_VERSION:
        raise error(
            f"{where}: the curvature of {record.task} is of version {record.version}, which has "
            "no importance",
            hint="make it again with `ella measure`",
        )
    if curvature.directions and record.version < DIRECTIONS_VERSION:
        raise error(
            f"{where}: the curvature of {record.task} is of version {record.version}, which has "
            "no directions",
            hint="make it again with `ella measure`",
        )


def _fits(file: TensorFile, names: tuple[str, ...]) -> bool:
    u, v, *r = (file.entries[name] for name in names)
    sound = all(one.dtype in FLOATS and one.nbytes for one in (u, v, *r))
    # No factor has more columns than rows: its square would have no more eigenvectors.
    if not sound or not all(map(_is_tall, (u, v))):
        return False
    return all(
        len(one.shape) == 3 and one.shape[1] <= u.shape[1] and one.shape[2] <= v.shape[1]
        for one in r
    )


def _is_tall(factor: Entry) -> bool:
    return len(factor.shape) == 2 and factor.shape[1] <= factor.shape[0]


def _shares_past(factor: Tensor) -> list[float]:
    """Of tr(U Uᵀ), U (M, K): what the columns past 0, 1, …, K hold; zeros where there is none."""
    columns = factor.double().square().sum(0)
    rest = columns.flip(0).cumsum(0).flip(0)  # of each column and all after it
    whole = float(rest[0])
    return [*(rest / whole if whole > 0 else rest).tolist(), 0.0]


def _each_past(factor: Tensor, rank: int) -> float:
    """What the columns past `rank` hold of tr(U Uᵀ), spread over its rows."""
    return float(factor[:, rank:].double().square().sum()) / len(factor)


def _digest(curvature: Curvature) -> str:
    plain = {f"{name}.{letter}": key for name, keys in curvature.keys.items()
             for letter, key in zip(LETTERS, keys, strict=False)}  # fmt: skip
    sums = [
        (name, hashlib.sha256(bytes_of(curvature.factor(key))).hexdigest())
        for name, key in plain.items()
    ]
    entries = {name: curvature.entry(key) for name, key in plain.items()}
    return curvature_digest(sums, entries, curvature.record)
