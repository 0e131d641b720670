"""Make the efficiency table that the fast simulator reads: src/elmoe/sim/specs/efficiency.json. Minutes on one core.

.venv/bin/python bench/dram_efficiency.py
"""

from __future__ import annotations

import json
from itertools import product

from elmoe.cli.console import progress_bar
from elmoe.sim.dram import MAPPINGS, REFRESHES, Controller, load_device
from elmoe.sim.efficiency import CHUNKS, QUEUES, column_key, fingerprint, simulate_column
from elmoe.trace.atomic import atomic_file
from harness import ROOT

TABLE = ROOT / "src" / "elmoe" / "sim" / "specs" / "efficiency.json"
DEVICES = ("lpddr5-6400-x16", "hb-bank")


def main() -> None:
    settings = list(product(MAPPINGS, QUEUES, REFRESHES, (True, False)))
    made: dict[str, dict[str, list[float]]] = {}
    with progress_bar("efficiency table") as progress:
        for number, name in enumerate(DEVICES):
            device = load_device(name)
            columns = made[fingerprint(device)] = {}
            for done, (mapping, queue, refresh, aligned) in enumerate(settings, 1):
                controller = Controller(mapping=mapping, queue=queue, refresh=refresh)
                columns[column_key(mapping, queue, refresh, aligned)] = simulate_column(device, controller, aligned)
                progress(number * len(settings) + done, len(DEVICES) * len(settings))
    document = {
        "made_by": "bench/dram_efficiency.py",
        "chunk_bytes": CHUNKS,
        "columns": "mapping/queue/refresh/alignment: share of peak by chunk size",
        "devices": made,
    }
    text = json.dumps(document).replace('], "', '],\n"')
    with atomic_file(TABLE) as file:
        file.write(f"{text}\n".encode())
    print(f"{TABLE}: {sum(len(columns) for columns in made.values())} columns")


if __name__ == "__main__":
    main()
