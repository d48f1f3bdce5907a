#!/usr/bin/env python
"""A simulation of prediction on many machines from measured stage times: how the rate grows, and what saturates.

    python tests/soak/simulate_scale.py --gpu-ms 29.3 --decode-ms 11.5 --finish-ms 72 --input-mb 0.32 --output-mb 0.043

Every machine has cores that decode and finish images (fusion to the image's size, PNG, Parquet), GPUs, and a network
card; all share an object store that answers so many requests a second. Images go through download, decoding, network
and finishing; each takes the first free server of its stage, and no machine reads further ahead than its buffer.
Service times vary by a quarter. Prints, for each number of machines, images/s, how busy each resource was, and the
busiest one. Not collected by pytest.
"""

import argparse
import heapq
import random

from tabulate import tabulate

MACHINES = (1, 2, 5, 10, 20, 30, 40, 50)


class Servers:
    """Equal servers of one stage; a job takes the one that is free first."""

    def __init__(self, count: int) -> None:
        self.free, self.count, self.busy = [0.0] * count, count, 0.0

    def serve(self, ready: float, seconds: float) -> float:
        """Return when a job is done that is ready at a time."""
        begin = max(ready, heapq.heappop(self.free))
        heapq.heappush(self.free, begin + seconds)
        self.busy += seconds
        return begin + seconds


def simulate(machines: int, args: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Return images per second, and the share of the time in which each resource is busy."""
    draw = random.Random(0)
    store = Servers(1)
    stages = [
        {"network card": Servers(1), "cores": Servers(args.cores), "GPUs": Servers(args.gpus)} for _ in range(machines)
    ]
    count = args.images * machines

    def vary(milliseconds: float) -> float:
        return milliseconds / 1e3 * draw.gammavariate(16, 1 / 16)

    def transfer(megabytes: float) -> float:
        return 8e6 * megabytes / (1e9 * args.gigabits)

    # An image goes from step to step; of all that wait for a server, the one that came first gets it.
    steps = [
        (None, lambda: (1 / args.images_per_request + 1 / args.images_per_part) / args.requests),
        ("network card", lambda: transfer(args.input_mb)),
        ("cores", lambda: vary(args.decode_ms)),
        ("GPUs", lambda: vary(args.gpu_ms)),
        ("cores", lambda: vary(args.finish_ms)),
        ("network card", lambda: transfer(args.output_mb)),
    ]
    waiting = [args.images] * machines  # images that are not begun
    events = []
    for machine in range(machines):
        for number in range(min(args.buffer, args.images)):
            events.append((0.0, number * machines + machine, machine, 0))
            waiting[machine] -= 1
    heapq.heapify(events)
    serial, end = count, 0.0
    while events:
        ready, number, machine, step = heapq.heappop(events)
        name, seconds = steps[step]
        done = (store if name is None else stages[machine][name]).serve(ready, seconds())
        end = max(end, done)
        if step + 1 < len(steps):
            heapq.heappush(events, (done, number, machine, step + 1))
        if name == "GPUs" and waiting[machine]:  # its place in the buffer is free
            waiting[machine], serial = waiting[machine] - 1, serial + 1
            heapq.heappush(events, (done, serial, machine, 0))
    busy = {
        name: sum(own[name].busy for own in stages) / (end * machines * stages[0][name].count) for name in stages[0]
    }
    return count / end, busy | {"object store": store.busy / end}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-ms", type=float, required=True, help="network of one image on a GPU")
    parser.add_argument("--decode-ms", type=float, required=True, help="decoding on one core")
    parser.add_argument("--finish-ms", type=float, required=True, help="all after the network on one core")
    parser.add_argument("--input-mb", type=float, required=True, help="size of an image file")
    parser.add_argument("--output-mb", type=float, required=True, help="size of a result")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of a machine (%(default)s)")
    parser.add_argument("--cores", type=int, default=64, help="cores of a machine (%(default)s)")
    parser.add_argument("--gigabits", type=float, default=10, help="network card of a machine (%(default)s)")
    parser.add_argument("--requests", type=float, default=5500, help="requests a second of the store (%(default)s)")
    parser.add_argument("--images-per-request", type=float, default=1, help="1 for image files, more for tar files")
    parser.add_argument("--images-per-part", type=float, default=64, help="--block-size of the job")
    parser.add_argument("--buffer", type=int, default=256, help="images read ahead by a machine (%(default)s)")
    parser.add_argument("--images", type=int, default=4000, help="images per machine (%(default)s)")
    args = parser.parse_args()
    rows = []
    for machines in MACHINES:
        rate, busy = simulate(machines, args)
        shares = [f"{100 * share:.0f} %" for share in busy.values()]
        rows.append([machines, f"{rate:.0f}", *shares, max(busy, key=busy.__getitem__)])
    print(tabulate(rows, ["machines", "images/s", *busy, "busiest"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
