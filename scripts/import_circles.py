#!/usr/bin/env python3
"""Fails where the modules of a crate import each other in a circle.

    python3 scripts/import_circles.py            # model, training and the program
    python3 scripts/import_circles.py --edges    # every module with what it imports

A file is a module, and it depends on the files that define what its `use` lines and paths
(`crate::`, `super::`, `self::`) name, through re-exports to where a thing is defined. Tests and
what only they import do not count. A `mod` line is no import.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES = {"sppo_model": ROOT / "model/src", "sppo_training": ROOT / "training/src", "sppo": ROOT / "src"}
DEFINED = re.compile(
    r"^\s*(?:pub(?:\([^)]*\))?\s+)?(?:unsafe\s+)?(?:const\s+)?(?:async\s+)?"
    r"(?:fn|struct|enum|trait|type|const|static|union|mod|macro_rules!)\s+([A-Za-z_]\w*)",
    re.M,
)


def source_of(path):
    """The text without comments, strings and what is only compiled for tests."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text, flags=re.S)
    out, i = [], 0
    for match in re.finditer(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*[^{;]*([{;])", text):
        if match.start() < i:
            continue
        out.append(text[i : match.start()])
        i = match.end()
        depth = 1 if match.group(1) == "{" else 0
        while depth and i < len(text):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
    return "".join(out) + text[i:]


def expand(tree, prefix=()):
    """The paths of a `use` tree, each with the name it gets."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, alias = tree.partition(" as ")
        parts = prefix + tuple(p.strip() for p in path.split("::") if p.strip())
        if parts and parts[-1] == "self" and len(parts) > 1:
            parts = parts[:-1]
        yield parts, alias.strip() or (parts[-1] if parts else "")
        return
    head = prefix + tuple(p.strip() for p in tree[:brace].split("::") if p.strip())
    inner, depth, start = tree[brace + 1 : tree.rindex("}")], 0, 0
    for i, char in enumerate(inner + ","):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            if inner[start:i].strip():
                yield from expand(inner[start:i], head)
            start = i + 1


class Crate:
    def __init__(self, root):
        self.modules = {}  # path of a module -> (file, text)
        for path in sorted(root.rglob("*.rs")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] in ("mod", "lib", "main"):
                parts = parts[:-1]
            if "tests" in parts or (parts and parts[-1].endswith("tests")):
                continue
            self.modules[parts] = (path, source_of(path))
        self.uses = {m: self.uses_of(m) for m in self.modules}
        self.defined = {m: set(DEFINED.findall(text)) for m, (_, text) in self.modules.items()}

    def absolute(self, module, path):
        """A path from the crate's root, or none where it leads elsewhere."""
        if not path:
            return None
        if path[0] == "crate":
            return path[1:]
        if path[0] == "self":
            return module + path[1:]
        here = module
        if path[0] == "super":
            while path and path[0] == "super":
                here, path = here[:-1], path[1:]
            return here + path
        if module + path[:1] in self.modules:
            return module + path
        return None

    def uses_of(self, module):
        """(name, path from the crate's root, whether it is seen from outside) of each import."""
        text = self.modules[module][1]
        found = []
        for public, tree in re.findall(r"^\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", text, re.M):
            for path, name in expand(tree):
                path = self.absolute(module, path)
                if path is not None:
                    found.append((name, path, bool(public)))
        rest = re.sub(r"^\s*(pub(?:\([^)]*\))?\s+)?use\s+[^;]+;", "", text, flags=re.M)
        for path in re.findall(r"\b((?:crate|super|self)(?:::\w+)+)", rest):
            path = self.absolute(module, tuple(path.split("::")))
            if path is not None:
                found.append(("", path, False))
        # `module::name`, where the module was imported or lies below.
        for head, name in re.findall(r"(?<!:)\b([a-z_]\w*)::(\w+)", rest):
            for alias, path, _ in list(found):
                if alias == head and path in self.modules:
                    found.append(("", path + (name,), False))
            if module + (head,) in self.modules:
                found.append(("", module + (head, name), False))
        return found

    def home(self, path, seen=frozenset()):
        """The module that defines what a path names."""
        if path in self.modules:
            return path
        for cut in range(len(path) - 1, -1, -1):
            module, rest = path[:cut], path[cut:]
            if module not in self.modules:
                continue
            if (module, rest) in seen:
                return module
            for name, target, public in self.uses.get(module, ()):
                if public and name in (rest[0], "*"):
                    target = target[:-1] if name == "*" else target
                    if name == "*" and not self.has(target, rest[0]):
                        continue
                    rest_of = rest if name == "*" else rest[1:]
                    return self.home(target + rest_of, seen | {(module, rest)})
            return module
        return ()

    def has(self, module, name):
        return name in self.defined.get(module, ())

    def edges(self):
        graph = {}
        for module in self.modules:
            targets = set()
            for _, path, public in self.uses[module]:
                # A re-export shows what lies below; it uses nothing.
                if public and path[: len(module)] == module:
                    continue
                target = self.home(path)
                # Naming a whole module is what its things are named by, which count themselves.
                if target != module and not (path == target and any(True for _ in self.below(target))):
                    targets.add(target)
            graph[module] = targets
        return graph

    def below(self, module):
        return (m for m in self.modules if m[: len(module)] == module and m != module)


def circles(graph):
    """Strongly connected components of more than one module (Tarjan)."""
    index, low, stack, on, out = {}, {}, [], set(), []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on.add(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in on:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while True:
                member = stack.pop()
                on.discard(member)
                group.append(member)
                if member == node:
                    break
            if len(group) > 1:
                out.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return out


def rooms(graph):
    """The same between the top-level modules of a crate."""
    out = {}
    for module, targets in graph.items():
        for target in targets:
            if module and target and module[0] != target[0]:
                out.setdefault(module[:1], set()).add(target[:1])
    return out


def main():
    sys.setrecursionlimit(10_000)
    failed = False
    for name, root in CRATES.items():
        graph = Crate(root).edges()
        show = lambda module: "::".join((name,) + module)
        if "--edges" in sys.argv:
            for module, targets in sorted(graph.items()):
                print(show(module), "->", ", ".join(sorted(map(show, targets))))
        for what, found in (("modules", circles(graph)), ("rooms", circles(rooms(graph)))):
            for circle in found:
                failed = True
                print(f"{name}: {what} in a circle:")
                for module in circle:
                    source = graph if what == "modules" else rooms(graph)
                    inside = sorted(show(t) for t in source[module] if t in circle)
                    print(f"    {show(module)} -> {', '.join(inside)}")
    if failed:
        sys.exit(1)
    print("no module imports another in a circle")


if __name__ == "__main__":
    main()
