"""What a stage's workers measured of themselves, summed up for its completion record."""

from __future__ import annotations

from infra.energy import Reading
from tasks.run_records import Effort, Fanout


class Tally:
    """Collects readings, one for each unit of work or rank."""

    def __init__(self) -> None:
        self.fanouts: list[Fanout] = []
        self.readings: list[Reading] = []

    def add(
        self,
        group: str,
        num_workers: int,
        readings: list[Reading],
        num_stored: int = 0,
        in_step: bool = False,
    ) -> None:
        """Add what was handed out at once.

        Args:
            num_workers: At work at a time, at the most.
            num_stored: Units beside them that were in the store already.
            in_step: The readings are of a process group's ranks.
        """
        self.readings += readings
        self.fanouts.append(
            Fanout(
                group=group,
                num_units=len(readings),
                num_stored=num_stored,
                num_workers=num_workers,
                worker_seconds=round(sum(r.seconds - r.loading_s for r in readings), 3),
                in_step=in_step,
            )
        )

    def effort(self, num_workers: int, alone: Reading) -> Effort:
        """Sum up.

        Args:
            num_workers: That the run had.
            alone: The driver's own reading of the stage, which counts where it had no workers.
        """
        readings = self.readings or [alone]
        known = [reading.joules for reading in readings if reading.joules is not None]
        return Effort(
            num_workers=num_workers,
            fanouts=self.fanouts,
            devices=sorted({device for reading in readings for device in reading.devices}),
            joules=round(sum(known), 3) if len(known) == len(readings) else None,
            meters=tuple(sorted({meter for reading in readings for meter in reading.meters})),
        )
