"""LipSDP side by side: lipcert's methods, eclipse-nn, and cvxpy with CLARABEL and SCS, on the networks of ``nets.py``.

    .venv/bin/python benchmarks/bench_lipsdp.py [--quick] [--slow] [--alexnet] [--only NAME] [--methods NAME …]

Every row runs in a process of its own with a time limit. ``results.csv`` is rewritten as rows finish, and
``results.md`` and ``value_vs_time.png`` are made from it; rows that a run does not repeat stay as they were, with their
own machine, load and date, so a part can be run again. Seconds are wall time after imports and a first small capture or
solve, so they are what the second call of a session costs; the capture of the network itself is included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import nets
import tables

HERE = Path(__file__).resolve().parent


def worker(name: str, method: str) -> dict:
    """Run one row in this process."""
    import peers
    import torch

    import lipcert

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    net = nets.find(name)
    model = net.build()
    if method.startswith(("eclipse-nn", "cvxpy")):
        return peers.run(method, model, net.limit)
    x = nets.example(net)
    # The first capture of a process by torch.export imports much of torch; plain Sequentials do without it.
    tiny = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1)).eval()
    lipcert.bound(torch.nn.Sequential(tiny, torch.nn.Softplus()).eval(), torch.zeros(1, 2), method="autolip")
    if method == "attack":
        lipcert.lower_bound(tiny, torch.zeros(1, 2), budget=0.1)
        lower = lipcert.lower_bound(model, x, inputs=net.data() if net.data else None, budget=10.0)
        return {"value": lower.value, "seconds": lower.seconds, "guarantee": "lower bound, witness"}
    lipcert.bound(tiny, torch.zeros(1, 2), method=method)
    began = time.process_time()
    bound = lipcert.bound(model, x, method=method, budget=net.budget)
    cpu = time.process_time() - began
    row = {"value": bound.value, "seconds": bound.seconds, "cpu_seconds": cpu, "guarantee": bound.guarantee}
    witness = bound.certificate.witness
    if "dual_value" in witness.settings:
        scale = 1.0 if method == "lipsdp_ipm" else 2.0 ** int(witness.arrays["exponents"][-1])
        row["primal"] = float(witness.settings["dual_value"]) * scale
        row["passes"] = witness.settings.get("passes")
    return row


def measure(net: nets.Net, method: str, threads: int) -> dict:
    """Run one row in a process of its own."""
    load = os.getloadavg()[0]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).resolve()), "--row", net.name, method]
    row = {"net": net.name, "method": method, "threads": threads, "load": round(load, 1), "limit": net.limit}
    row |= {"machine": tables.machine(), "version": tables.version(), "date": time.strftime("%Y-%m-%d")}
    try:
        done = subprocess.run(command, env=env, timeout=net.limit, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return row | {"status": "timeout", "remark": f"stopped after {net.limit:g} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return row | {"status": "error", "remark": last[:300]}
    return row | {"status": "ok"} | json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks only, a few minutes")
    parser.add_argument("--slow", action="store_true", help="also rows that take minutes each: CLARABEL, SCS, ECLipsE")
    parser.add_argument("--alexnet", action="store_true", help="AlexNet too (up to half an hour)")
    parser.add_argument("--only", metavar="NAME", help="networks whose name contains NAME, of any group")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--list", action="store_true", help="print the names of the networks and stop")
    parser.add_argument("--tables", action="store_true", help="only make results.md and the plot again")
    parser.add_argument("--row", nargs=2, metavar=("NET", "METHOD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        row = worker(*args.row)
        row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(json.dumps(row))
        return
    if args.list:
        print("\n".join(f"{net.name:<14}{net.group:<9}{', '.join(net.methods)}" for net in nets.NETS))
        return
    results = tables.Results(HERE / "results.csv")
    if not args.tables:
        for net, method in nets.rows(quick=args.quick, slow=args.slow, alexnet=args.alexnet, only=args.only):
            if args.methods and method not in args.methods:
                continue
            row = measure(net, method, args.threads)
            results.put(row)
            print(f"{net.name:<14}{method:<20}", tables.brief(row), flush=True)
            tables.write(results, HERE)
    tables.write(results, HERE)
    tables.plot(results, HERE / "value_vs_time.png")


if __name__ == "__main__":
    main()
