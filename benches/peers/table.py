"""One Markdown table from the reports that run.sh has collected.

usage: table.py SCRATCH --command COMMAND [--quick]
       table.py SCRATCH --envelope

SCRATCH holds `versions` (name, tab, version) and reports/ROUND.NAME.WHAT.json as `campanile load
--json` writes them. A number is the median over the rounds; a ratio is of two runs of the same
round, and the median of those. With --envelope it prints the floor's arguments that make its
deliveries as long as Campanile's, one a line.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics

OURS = "campanile"
FLOORS = {"floor", "joined"}
NOT_PEERS = {OURS, "campanile-redis"} | FLOORS
TITLES = {
    "campanile": "Campanile",
    "campanile-redis": "Campanile over Redis",
    "floor": "floor",
    "joined": "joined floor",
    "nchan": "nginx + Nchan",
    "sockudo": "sockudo",
    "ws": "`ws` + Redis",
    "socketio": "Socket.IO",
    "gorilla": "Go, gorilla/websocket + Redis",
}
# What is compared: name, which run, how to take it out of a report, how to write it.
COSTS = [
    ("bytes per idle connection", "idle", lambda r: r["memory"]["rss_per_conn"], "{:,.0f}"),
    ("CPU at window 1", "window1", lambda r: r["fanout"]["server_cpu_us_per_delivery"], "{:.2f}"),
    ("p99 at window 1", "window1", lambda r: r["fanout"]["latency"]["p99_us"], "{:,.0f}"),
    ("CPU at window 64", "window64", lambda r: r["fanout"]["server_cpu_us_per_delivery"], "{:.2f}"),
    ("p99 at window 64", "window64", lambda r: r["fanout"]["latency"]["p99_us"], "{:,.0f}"),
]
IDLE, CPU_1, P99_1, CPU_64, P99_64 = COSTS


# Cores that may do something else during a run before the table says so.
OTHERS_MAX = 0.1


class Reports:
    """All reports, by name, run and round."""

    def __init__(self, folder):
        self.all, self.disturbed = {}, []
        for path in sorted(folder.glob("[1-9]*.others")):
            ticks, ticks_a_second, nanoseconds = map(int, path.read_text().split())
            cores = ticks / ticks_a_second / (nanoseconds / 1e9)
            if cores > OTHERS_MAX:
                number, name, what, _ = path.name.split(".")
                title = TITLES.get(name, name)
                self.disturbed.append(f"{title} at {what} in round {number}: {cores:.1f} cores")
        for path in sorted(folder.glob("[1-9]*.json")):
            number, name, what, _ = path.name.split(".")
            text = path.read_text()
            if text.strip():
                self.all.setdefault((name, what), {})[int(number)] = json.loads(text)

    def values(self, name, what, take):
        """{round: value}, of the rounds that have one."""
        found = {}
        for number, report in self.all.get((name, what), {}).items():
            try:
                value = take(report)
            except (KeyError, TypeError):
                continue
            if value:
                found[number] = value
        return found

    def median(self, name, what, take):
        values = self.values(name, what, take)
        return statistics.median(values.values()) if values else None

    def ratio(self, name, what, take):
        """Theirs by ours: above 1 is ours to win."""
        theirs, ours = self.values(name, what, take), self.values(OURS, what, take)
        both = [theirs[number] / ours[number] for number in theirs if number in ours]
        return statistics.median(both) if both else None

    def sum(self, name, key):
        reports = [r for (who, _), rounds in self.all.items() if who == name for r in rounds.values()]
        fanouts = [r["fanout"] for r in reports if "fanout" in r]
        return sum(fanout[key] for fanout in fanouts) if fanouts else None

    def with_a_busy_generator(self):
        """Runs in which the generator used nearly all of its core in some round."""
        for (name, what), rounds in self.all.items():
            if any(r.get("fanout", {}).get("generator_cores", 0) > 0.95 for r in rounds.values()):
                yield f"{TITLES.get(name, name)} at {what}"

    def shortfalls(self, name):
        """What went wrong, each thing once."""
        runs = ["window1", "window64"] + ([] if name in FLOORS else ["idle"])
        found = [f"{what}: no report" for what in runs if (name, what) not in self.all]
        for (who, what), rounds in self.all.items():
            for report in rounds.values() if who == name else ():
                troubles = report["shortfalls"] + [report.get("first_failure")]
                if not report["ok"]:
                    found.append(f"{what}: {'; '.join(filter(None, troubles))}")
        return list(dict.fromkeys(found))


def written(value, form):
    return "–" if value is None else form.format(value)


def row(reports, name):
    def of(cost):
        _, what, take, form = cost
        return written(reports.median(name, what, take), form)

    def with_spread(cost):
        _, what, take, form = cost
        values = reports.values(name, what, take).values()
        if len(values) < 2:
            return of(cost)
        return f"{of(cost)} ({form.format(min(values))}–{form.format(max(values))})"

    def times(cost):
        _, what, take, _ = cost
        return written(reports.ratio(name, what, take), "{:.2f}")

    def p50(what):
        return written(reports.median(name, what, lambda r: r["fanout"]["latency"]["p50_us"]), "{:,.0f}")

    wire = reports.median(name, "window1", lambda r: r["fanout"]["bytes_per_delivery"])
    return [
        TITLES.get(name, name),
        of(IDLE),
        times(IDLE),
        with_spread(CPU_1),
        times(CPU_1),
        f"{p50('window1')} / {of(P99_1)}",
        with_spread(CPU_64),
        times(CPU_64),
        f"{p50('window64')} / {of(P99_64)}",
        written(wire, "{:.0f}"),
        written(reports.sum(name, "lost"), "{:,}"),
    ]


HEAD = [
    "",
    "B / idle connection",
    "× ours",
    "window 1: CPU µs",
    "× ours",
    "p50 / p99 µs",
    "window 64: CPU µs",
    "× ours",
    "p50 / p99 µs",
    "wire B",
    "lost",
]


def losses(reports, names):
    """Where another server is better than we are."""
    for title, what, take, form in COSTS:
        for name in names:
            ratio = reports.ratio(name, what, take)
            if name not in NOT_PEERS and ratio is not None and ratio < 1:
                theirs = written(reports.median(name, what, take), form)
                yield f"{title}: {TITLES.get(name, name)} has {theirs}, {ratio:.2f} × ours"


def envelope(folder):
    """What stands before and behind the payload, which is a string without escapes."""
    sample = json.loads((folder / "0.campanile.envelope.json").read_text())["fanout"]["sample"]
    start = sample.index('"payload":') + len('"payload":')
    end = sample.index('"', start + 1) + 1
    return ["--prefix", sample[:start], "--suffix", sample[end:]]


def machine():
    def first(path, key):
        for line in pathlib.Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
        return "unknown"

    memory_gib = int(first("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    return f"{first('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("--command", default="")
    parser.add_argument("--envelope", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.envelope:
        print("\n".join(envelope(args.scratch / "reports")))
        return
    lines = (args.scratch / "versions").read_text().splitlines()
    versions = dict(line.split("\t", 1) for line in lines)
    names = list(versions)
    reports = Reports(args.scratch / "reports")

    if args.quick:
        print("A quick run: it shows that everything works; its costs mean nothing.\n")
    rounds = max((n for rounds in reports.all.values() for n in rounds), default=0)
    print(f"* `{args.command.strip()}`, {datetime.date.today()}, {rounds} round(s)")
    print(f"* {machine()}, Linux {platform.release()}\n")
    print("|" + "|".join(f" {title} " for title in HEAD) + "|")
    print("|---" + "|---:" * (len(HEAD) - 1) + "|")
    for name in names:
        print("| " + " | ".join(row(reports, name)) + " |")
    print("\nWhere Campanile loses to another server (by the medians, noise included):\n")
    lost = list(losses(reports, names))
    print("\n".join(f"* {line}" for line in lost) if lost else "* nowhere in this run")
    troubles = [(name, trouble) for name in names for trouble in reports.shortfalls(name)]
    if troubles:
        print("\nWhat went wrong:\n")
        for name, trouble in troubles:
            print(f"* {TITLES.get(name, name)}, {trouble}")
    print("\n| | version |\n|---|---|")
    for name, version in versions.items():
        print(f"| {TITLES.get(name, name)} | {version} |")
    if reports.disturbed:
        print("\nSomething else was running on this machine, so do not believe these runs:\n")
        print("\n".join(f"* {line}" for line in reports.disturbed))
    busy = sorted(reports.with_a_busy_generator())
    if busy:
        print("\nIn these runs the generator's core was the limit, so their latencies are its own and")
        print(f"only costs and losses count: {', '.join(busy)}.")


if __name__ == "__main__":
    main()
