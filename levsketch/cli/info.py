"""``levsketch info``: what a file holds, and whether it is whole."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .exits import NO_INPUT, OK, CommandError, warnings_in_one_line
from .npy import matrix_problem, read_header
from .output import count_text, finite_or_none, print_facts, print_json, size_text
from .setfile import kind_of, load_set, member_headers

_SPARSE = {"indices", "indptr", "format", "shape", "data"}


def run(args: argparse.Namespace) -> int:
    """Describe a file; return 0, for a damaged one raise CommandError (code 66)."""
    kind = kind_of(args.file)
    if kind == "npy":
        found, lines = _npy(args.file)
    elif kind == "npz" and "state" not in (members := member_headers(args.file)):
        found, lines = _scores(args.file, members)
    else:
        with warnings_in_one_line():
            found, lines = _selector(args.file)
    found = {"file": args.file, **found}
    if args.json:
        print_json(found)
    else:
        print_facts({"file": args.file, **lines})
    return OK


def _npy(path: str) -> tuple[dict[str, Any], dict[str, object]]:
    header = read_header(path)
    problem = matrix_problem(header)
    size = header.stamp[1]
    found = {
        "kind": "npy",
        "shape": list(header.shape),
        "dtype": header.dtype.str if header.dtype.names is None else str(header.dtype),
        "order": "F" if header.fortran else "C",
        "size_bytes": size,
        "problem": problem,
    }
    lines: dict[str, object] = {
        "kind": "NumPy array",
        "shape": " x ".join(f"{n:,}" for n in header.shape) or "a single number",
        "dtype": f"{header.dtype} ({'Fortran' if header.fortran else 'C'} order)",
        "size": size_text(size),
        "usable": "yes, as keys or queries" if problem is None else f"no: {problem}",
    }
    return found, lines


def _scores(path: str, members: dict[str, Any]) -> tuple[dict[str, Any], dict[str, object]]:
    """Describe what ``levsketch scores`` writes; any other .npz is an error."""
    size = os.path.getsize(path)
    if members.keys() >= _SPARSE:
        dtype, shape = members["data"]
        rows = members["indptr"][1][0] - 1
        found = {"kind": "sparse scores", "queries": rows, "entries": shape[0]}
        text = f"{rows:,} queries, {shape[0]:,} scores"
        how = "scipy.sparse.load_npz"
    elif members.keys() == {"scores", "indices"}:
        dtype, shape = members["scores"]
        found = {"kind": "dense scores", "queries": shape[0], "selected": shape[1]}
        text = f"{shape[0]:,} queries x {shape[1]:,} selected keys"
        how = 'numpy.load(...)["scores"]'
    else:
        names = ", ".join(sorted(members)) or "nothing"
        raise CommandError(NO_INPUT, f"{path}: is a .npz, but neither a set nor scores ({names})")
    lines: dict[str, object] = {
        "kind": found["kind"],
        "holds": f"{text}, {dtype}",
        "size": size_text(size),
        "opens with": how,
    }
    return {**found, "dtype": dtype.str, "size_bytes": size}, lines


def _selector(path: str) -> tuple[dict[str, Any], dict[str, object]]:
    loaded = load_set(path)
    selector = loaded.selector
    scores = selector.scores_
    condition = finite_or_none(selector.condition_number_)
    found = {
        "kind": loaded.kind,
        "format_version": loaded.format_version,
        "rows": selector.n_samples_seen_,
        "columns": selector.n_features_in_,
        "selected": len(scores),
        "eps": float(selector.eps),
        "n_keys": selector.n_keys,
        "min_keys": int(selector.min_keys),
        "intercept": bool(selector.intercept),
        "ridge": float(selector.ridge),
        "certified": selector.certified_,
        "method": selector.method_,
        "condition_number": condition,
        "size_bytes": loaded.size,
        "files": [{"path": name, "first_row": row} for name, row in loaded.files],
    }
    asked = f"score >= {selector.eps:g}"
    if selector.n_keys is not None:
        asked = f"the {selector.n_keys:,} largest scores"
    names = {"set": "set of keys", "state": "saved LeverageKeySelector"}
    lines: dict[str, object] = {
        "kind": f"{names[loaded.kind]}, format version {loaded.format_version}, checksum matches",
        "seen": f"{selector.n_samples_seen_:,} rows x {selector.n_features_in_} columns",
        "selected": f"{count_text(len(scores), 'key')} ({asked}), scores "
        + (f"{scores.min():.4g} to {scores.max():.4g}" if len(scores) else "none"),
        "options": f"min_keys {selector.min_keys}, intercept {selector.intercept}, "
        f"ridge {selector.ridge:g}",
        "certified": "yes" if selector.certified_ else "no",
        "method": f"{selector.method_}, condition number "
        f"{'infinite' if condition is None else f'{condition:.1e}'}",
        "size": size_text(loaded.size),
    }
    if loaded.files:
        first, more = loaded.files[0][0], len(loaded.files) - 1
        lines["from"] = first + (f" and {more} more" if more else "")
    return found, lines
