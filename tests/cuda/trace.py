#!/usr/bin/env python3
"""What traces of null_cuda.c say: launches, copies, waits, bytes and matrix products.

    trace.py KERNELS LONGER [SHORTER --units N] [--top N] [--show KERNEL]

KERNELS is trace_nvrtc.c's TRACENVRTC_DIR; LONGER is a trace, SHORTER one of the same run with N units
(steps, batches) fewer: the difference, divided by N, is what one unit does. Without it, the whole.

Bytes of a launch are those of its buffers by CubeCL's own metadata (each read once where it is const,
written once where it is not, both where the kernel reads it too): a lower bound, since operands of
matrix products come from the card's memory more than once. FLOPs of a matrix product are
2·sqrt(lhs·rhs·out/batch) elements where its sizes are not found among its scalars. Time is the larger
of bytes / bandwidth and FLOPs / peak, both at --reach of the card's number, and --gap a launch.
"""
import argparse
import collections
import os
import re

SIZES = {"float": 4, "uint32": 4, "int32": 4, "bool": 1, "uint8": 1, "int8": 1, "__nv_bfloat16": 2, "__half": 2,
         "uint64": 8, "int64": 8, "double": 8, "uint16": 2, "int16": 2, "__nv_bfloat162": 4, "bfloat16": 2, "half": 2}
# cudaDataType: name and bytes.
FORMATS = {0: ("f32", 4), 14: ("bf16", 2)}
# Stands for the hash of kernels that a library brings along.
LIBRARY = ""


def lanes(kind):
    found = re.fullmatch(r".*?_(\d+)", kind)
    return int(found[1]) if found and kind not in SIZES else 1


def size_of(kind):
    """Bytes of a type that CubeCL writes: `name` or `name_LANES`."""
    return SIZES.get(kind) or SIZES.get(re.sub(r"_\d+$", "", kind), 0) * lanes(kind)


class Kernel:
    """A kernel's parameters and the layout of its metadata, out of its CUDA source."""

    def __init__(self, name, text):
        self.name = name
        self.matmul = any(word in name for word in ("matmul", "gemv", "vecmat"))
        entry = re.search(r'extern "C" __global__ void[^\n]*?\w+ \(\n(.*?)\n\) *\{', text, re.S)
        body = text[entry.end():] if entry else ""
        self.buffers = []  # type, whether it is only read, whether it is read at all
        for parameter in (entry[1] if entry else "").split(","):
            words = parameter.replace("__restrict__", "").replace("__grid_constant__", "").split()
            const = "const" in words[:1]
            words = [word for word in words if word != "const"]
            if len(words) < 2 or "*" not in parameter or words[-1].lstrip("*") == "dynamic_meta":
                continue
            name = words[-1].lstrip("*")
            reads = const or re.search(r"(=|\(|\+|&)\s*&?" + re.escape(name) + r"\[", body)
            self.buffers.append((words[0].rstrip("*"), const, bool(reads)))
        self.fields = {}  # name: offset, count, bytes of each
        info, at = re.search(r"struct info_st \{(.*?)\};", text, re.S), 0
        for kind, field, count in re.findall(r"(\w+)\s+(\w+)\[(\d+)\];", info[1] if info else ""):
            size = size_of(kind) or 4
            at = -(-at // size) * size
            self.fields[field] = (at, int(count), size)
            at += size * int(count)

    def values(self, field, parameters):
        """A field of the metadata of a launch."""
        at, count, size = self.fields.get(field, (0, 0, 1))
        info = next((bytes.fromhex(p[1:-1]) for p in reversed(parameters) if p.startswith("[")), b"")
        return [int.from_bytes(info[at + i * size:at + (i + 1) * size], "little") for i in range(count)]

    def measure(self, parameters):
        """Bytes and FLOPs of a launch."""
        lengths = self.values("static_meta", parameters)
        lengths += [0] * (len(self.buffers) - len(lengths))
        elements = [length * lanes(kind) for length, (kind, _, _) in zip(lengths, self.buffers)]
        written = [n for n, (_, const, _) in zip(elements, self.buffers) if not const]
        total = 0
        for n, (kind, const, reads) in zip(elements, self.buffers):
            if const and not self.matmul and "reduce" not in self.name:
                n = min(n, max(written, default=0))  # A gather reads no more than it writes.
            total += n * size_of(kind) // lanes(kind) * (1 + (not const and reads))
        return total, self.flops(elements, parameters) if self.matmul and len(elements) > 2 else 0.0

    def flops(self, elements, parameters):
        lhs, rhs, out = elements[:3]
        scalars, fits = self.values("scalars_uint32", parameters), []
        for m, k in zip(scalars, scalars[1:]):
            if m and k and lhs % (m * k) == 0:
                batch = lhs // (m * k)
                n = rhs // (k * batch)
                if n in scalars and batch * k * n == rhs and batch * m * n == out:
                    fits.append(k)
        return 2.0 * out * min(fits) if fits else 2.0 * (lhs * rhs * out) ** 0.5


def short(name):
    """A kernel's name without the hash that sets its variants apart."""
    return re.sub(r"(_[0-9a-f]{8,}|_\d+)+$", "", name)


class Count:
    """What a program, or a unit of it, did."""

    def __init__(self):
        self.events = collections.Counter()  # K launches, H copies to the device, D to the host, S waits
        self.copied = self.bytes = self.flops = 0.0
        self.reserved = 0  # the most bytes that were allocated from the driver at one time; of a whole run only
        self.kernels = collections.defaultdict(lambda: [0, 0.0, 0.0])  # (name, hash): launches, bytes, FLOPs
        self.refused = []

    def __sub__(self, other):
        out = Count()
        out.events = collections.Counter({k: self.events[k] - other.events[k] for k in self.events | other.events})
        out.copied, out.bytes, out.flops = self.copied - other.copied, self.bytes - other.bytes, self.flops - other.flops
        for key in {*self.kernels, *other.kernels}:
            mine, theirs = self.kernels.get(key, [0, 0, 0]), other.kernels.get(key, [0, 0, 0])
            out.kernels[key] = [a - b for a, b in zip(mine, theirs)]
        return out

    def __truediv__(self, units):
        out = Count()
        out.events = collections.Counter({k: v / units for k, v in self.events.items()})
        out.copied, out.bytes, out.flops = self.copied / units, self.bytes / units, self.flops / units
        for key, row in self.kernels.items():
            out.kernels[key] = [value / units for value in row]
        return out

    def by_name(self):
        """Launches by name of the kernel, without variants."""
        names = collections.Counter()
        for (name, _), row in self.kernels.items():
            names[short(name)] += row[0]
        return {name: round(n, 2) for name, n in sorted(names.items()) if round(n, 2)}

    def table(self, top, peak=989e12, bandwidth=3.35e12, reach=0.8, gap=2e-6):
        """Lines of text: the kernels that take the most time on a card, at least."""
        def line(launches, moved, flops, name):
            seconds = max(moved / (bandwidth * reach), flops / (peak * reach)) + launches * gap
            text = f"{launches:9.1f} {moved / 1e9:10.4f} GB {flops / 1e12:10.4f} TFLOP {seconds * 1e3:9.3f} ms  {name}"
            return seconds, text
        rows = [line(*row, f"{digest[:8]} {name}") for (name, digest), row in self.kernels.items() if row[0]]
        total = sum(seconds for seconds, _ in rows)
        e = self.events
        head = [f"launches {e['K']:.1f}, copies to the device {e['H']:.1f} ({self.copied:.0f} bytes), to the host {e['D']:.1f}, "
                f"waits {e['S']:.1f}, bytes touched {self.bytes:.6g}, FLOPs {self.flops:.4g}, at least {total * 1e3:.3f} ms"]
        if self.reserved:
            head.append(f"reserved at most {self.reserved / 2**30:.2f} GiB of the card's memory")
        return head + [text for _, text in sorted(rows, reverse=True)[:top]]


def read(trace, kernels, show=None, cache={}):
    """Counts a trace."""
    count, functions, reserved = Count(), {}, 0
    for line in open(trace, errors="replace"):
        kind, *rest = line.split()
        if kind == "F":
            number, digest, name = rest[1], rest[2], rest[3]
            if digest not in cache:
                path = os.path.join(kernels, digest + ".cu")
                cache[digest] = Kernel(name, open(path).read() if os.path.exists(path) else "")
            functions[number] = digest
        elif kind == "K":
            digest, parameters = functions[rest[1]], rest[5:]
            kernel = cache[digest]
            moved, flops = kernel.measure(parameters)
            row = count.kernels[kernel.name, digest]
            row[0], row[1], row[2] = row[0] + 1, row[1] + moved, row[2] + flops
            count.bytes, count.flops = count.bytes + moved, count.flops + flops
            if show and show in kernel.name + digest:
                print(rest[0], kernel.name, digest[:8], *rest[2:5], f"{moved} bytes")
        elif kind == "M":
            m, n, k, inputs, output = map(int, rest[1:])
            (inputs, size), (output, size_out) = FORMATS[inputs], FORMATS[output]
            moved, flops = size * k * (m + n) + size_out * m * n, 2.0 * m * n * k
            row = count.kernels[f"cublaslt_{inputs}_in_{output}", LIBRARY]
            row[0], row[1], row[2] = row[0] + 1, row[1] + moved, row[2] + flops
            count.bytes, count.flops = count.bytes + moved, count.flops + flops
            count.events["K"] += 1  # At least: the library may start two for one product.
        elif kind == "H":
            count.copied += int(rest[2])
        elif kind in "AR":
            reserved += int(rest[2]) if kind == "A" else -int(rest[2])
            count.reserved = max(count.reserved, reserved)
        elif kind == "E":
            count.refused.append(" ".join(rest[1:]))
        count.events[kind] += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels")
    parser.add_argument("longer")
    parser.add_argument("shorter", nargs="?")
    parser.add_argument("--units", type=int, default=1)
    parser.add_argument("--top", type=int, default=40)
    parser.add_argument("--show", help="prints the launches of kernels whose name or hash holds this")
    parser.add_argument("--reach", type=float, default=0.8)
    parser.add_argument("--gap", type=float, default=2.0, help="microseconds")
    given = parser.parse_args()
    count = read(given.longer, given.kernels, given.show)
    if given.shorter:
        count = (count - read(given.shorter, given.kernels)) / given.units
    print("\n".join(count.table(given.top, reach=given.reach, gap=given.gap * 1e-6)))


if __name__ == "__main__":
    main()
