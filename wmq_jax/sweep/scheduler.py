"""Which cells the engine works on: a finished cell's place is taken by the next one at once."""

import collections
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from wmq_jax.planning import IterationRecord
from wmq_jax.sweep.cells import Cell
from wmq_jax.sweep.engine import Engine, Work, empty_work


class Finished(NamedTuple):
    """A cell that is done, with one record (numpy) per executed MPC iteration."""

    cell: Cell
    records: list[IterationRecord]


class Call(NamedTuple):
    """One call of the engine.

    Attributes:
      finished: the cells that it finished.
      plans: plans it made, one per active cell.
      seconds: wall time.
      iterations: MPC iterations that the cells still in work have done, one entry each.
    """

    finished: list[Finished]
    plans: int
    seconds: float
    iterations: list[int]


@dataclasses.dataclass
class _Slot:
    """A place in a tile and the cell that sits there."""

    cell: Cell | None = None
    records: list[IterationRecord] = dataclasses.field(default_factory=list)


def _groups(cells: Iterable[Cell], tile: int) -> collections.deque[collections.deque[Cell]]:
    """Queues of cells that may share a tile: each cell its own where tiles hold one, else by variant and horizon."""
    if tile == 1:
        return collections.deque(collections.deque([cell]) for cell in cells)
    groups: dict[tuple[int, int], collections.deque[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.variant, cell.horizon), collections.deque()).append(cell)
    return collections.deque(groups.values())


def _refill(slots: list[list[_Slot]], groups: collections.deque[collections.deque[Cell]], work: Work) -> None:
    """Seats waiting cells: in tiles of their own kind first, then in idle tiles."""
    waiting = {(g[0].variant, g[0].horizon): g for g in groups if g} if len(slots[0]) > 1 else {}
    for index, tile in enumerate(slots):
        seated = next((slot.cell for slot in tile if slot.cell), None)
        if seated is not None:
            queue = waiting.get((seated.variant, seated.horizon))
        else:
            while groups and not groups[0]:
                groups.popleft()
            queue = groups[0] if groups else None
        if not queue:
            continue
        for place, slot in enumerate(tile):
            if slot.cell is None and queue:
                _seat(work, index, place, slot, queue.popleft())
        if seated is None and len(tile) > 1:
            # Several tiles may serve one kind of cell; the queue goes to the back so that kinds take turns.
            groups.rotate(-1)


def _seat(work: Work, index: int, place: int, slot: _Slot, cell: Cell) -> None:
    slot.cell, slot.records = cell, []
    work.variant[index], work.horizon[index] = cell.variant, cell.horizon
    work.episode[index, place], work.seed[index, place] = cell.episode, cell.seed
    work.state.iteration[index, place] = 0


def _collect(slots, active, state, records: IterationRecord, work: Work, iterations: int) -> list[Finished]:
    """Files the records of a call and frees the places of cells that are done."""
    for old, new in zip(jax.tree.leaves(work.state), jax.tree.leaves(state)):
        old[...] = new
    finished = []
    for index, place in active:
        slot = slots[index][place]
        slot.records.append(jax.tree.map(lambda x: np.asarray(x[index, place]), records))
        if slot.records[-1].success or len(slot.records) == iterations:
            finished.append(Finished(slot.cell, slot.records))
            slots[index][place] = _Slot()
    return finished


def run_cells(engine: Engine, cells: Sequence[Cell]) -> Iterator[Call]:
    """Plans every cell to its end: success, or the last MPC iteration.

    Args:
      engine: the compiled program; cells index its table and episodes.
      cells: in the order in which they should start.

    Yields:
      One :class:`Call` per call of the engine, as soon as it is done.
    """
    groups = _groups(cells, engine.tile)
    slots = [[_Slot() for _ in range(engine.tile)] for _ in range(engine.tiles)]
    work = empty_work(engine.problem, engine.tiles, engine.tile)
    while True:
        _refill(slots, groups, work)
        active = [(i, p) for i, tile in enumerate(slots) for p, slot in enumerate(tile) if slot.cell]
        if not active:
            return
        work.active[:] = [any(slot.cell for slot in tile) for tile in slots]
        began = time.perf_counter()
        state, records = engine(work)
        seconds = time.perf_counter() - began
        finished = _collect(slots, active, state, records, work, engine.problem.config.iterations)
        busy = [len(slot.records) for tile in slots for slot in tile if slot.cell]
        yield Call(finished, len(active), seconds, busy)
