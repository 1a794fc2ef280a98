"""``levsketch select``: the keys that matter, from files of any size."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from levsketch import LeverageKeySelector
from levsketch._checks import not_reduced_text

from .exits import DATA, OK, OS_ERROR, CommandError, complain, warnings_in_one_line
from .npy import NpyHeader, read_matrix_header
from .output import (
    check_output,
    count_text,
    finite_or_none,
    print_facts,
    print_json,
    size_text,
    write_output,
)
from .progress import ReadingProgress
from .read_ahead import Block, read_blocks, refuse_bad_values
from .setfile import set_bytes

# The state and its work space, in d x d matrices of 8 bytes: a generous count.
_MATRICES = 8


def run(args: argparse.Namespace) -> int:
    """Select keys as the arguments say, write the set, print a summary; return the exit code."""
    sources = [read_matrix_header(path) for path in args.keys]
    check_inputs(sources)
    check_output(args.output, overwrite=args.overwrite, inputs=args.keys)
    selector = LeverageKeySelector(
        eps=args.eps,
        n_keys=args.n_keys,
        min_keys=args.min_keys,
        intercept=args.intercept,
        ridge=args.ridge,
    )
    with ReadingProgress(sources, quiet=args.quiet) as progress:
        with closing(read_blocks(sources, args.block_bytes)) as blocks:
            for block in blocks:
                _absorb(selector, block)
                progress.advance(len(block.rows), block.rows.nbytes)
        with warnings_in_one_line():
            data = set_bytes(selector, sources)
        seconds = progress.seconds
    # once more: the output may have come into being during a long run
    check_output(args.output, overwrite=args.overwrite, inputs=args.keys)
    write_output(args.output, data)
    found = _found(selector, sources, seconds, args)
    bound = found["bound"]
    if args.n_keys is None and (bound is None or bound >= selector.n_samples_seen_):
        columns = selector.n_features_in_ + args.intercept
        complain("warning", not_reduced_text(columns, args.eps, selector.n_samples_seen_))
    if args.json:
        print_json(found)
    elif not args.quiet:
        print_facts(_summary(found))
    return OK


def check_inputs(sources: Sequence[NpyHeader]) -> None:
    """Refuse (code 65) files whose columns differ or that hold no rows, (71) too many columns."""
    first = sources[0]
    for other in sources[1:]:
        if other.columns != first.columns:
            raise CommandError(
                DATA,
                f"{other.path}: has {other.columns} columns, but {first.path} has "
                f"{first.columns}; all files must agree",
            )
    if not any(source.rows for source in sources):
        raise CommandError(DATA, f"{first.path}: there are no rows in the input")
    if not hasattr(os, "sysconf"):
        return  # no way to ask; running out of memory is an error, too
    needed = _MATRICES * 8 * first.columns**2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise CommandError(
            OS_ERROR,
            f"{first.path}: {first.columns} columns need about {size_text(needed)} of memory, "
            f"this machine has {size_text(memory)} (keys are rows: is the matrix transposed?)",
        )


def _absorb(selector: LeverageKeySelector, block: Block) -> None:
    """Learn a block of rows, or say which value of which file cannot be learned."""
    try:
        selector.partial_fit(block.rows)
    except (ValueError, OverflowError) as error:
        refuse_bad_values(block)
        raise CommandError(DATA, f"{block.source.path}: {error}") from error


def _found(
    selector: LeverageKeySelector,
    sources: Sequence[NpyHeader],
    seconds: float,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    rows, scores = selector.n_samples_seen_, selector.scores_
    columns = selector.n_features_in_ + int(args.intercept)
    files, first = [], 0
    for source in sources:
        files.append({"path": source.path, "rows": source.rows, "first_row": first})
        first += source.rows
    return {
        "output": args.output,
        "files": files,
        "rows": rows,
        "columns": selector.n_features_in_,
        "eps": args.eps,
        "n_keys": args.n_keys,
        "selected": len(scores),
        "reach_eps": int((scores + selector.guard_ >= args.eps).sum()),
        "bound": finite_or_none(columns / args.eps),
        "certified": selector.certified_,
        "unselected_bound": selector.unselected_bound_,
        "method": selector.method_,
        "condition_number": finite_or_none(selector.condition_number_),
        "state_bytes": selector.nbytes_,
        "seconds": seconds,
        "rows_per_second": rows / max(seconds, 1e-9),
        "indices": selector.indices_.tolist(),
        "scores": scores.tolist(),
    }


def _summary(found: dict[str, Any]) -> dict[str, object]:
    """Return the lines that people read."""
    eps, size = f"{found['eps']:g}", count_text(found["selected"], "key")
    if found["n_keys"] is not None:
        size += f" (asked for {found['n_keys']:,})"
        proof = "these are the keys with the largest scores"
        doubt = f"a key outside may have a score up to {found['unselected_bound']:.3g}"
    else:
        bound = "no bound" if found["bound"] is None else f"{found['bound']:,.0f}"
        reach, more = found["reach_eps"], found["selected"] - found["reach_eps"]
        size = f"{count_text(reach, 'key')} with a score >= {eps} (at most {bound} can have one)"
        size += f", and the best {more:,} below it" if more else ""
        proof = f"no other key ever gets {eps} or more of a query's attention"
        doubt = "float64 cannot prove it for keys this ill-conditioned; the set was enlarged"
    condition = found["condition_number"]
    files = found["files"]
    return {
        "read": f"{count_text(found['rows'], 'row')} x {found['columns']} columns from "
        + count_text(len(files), "file"),
        "time": f"{found['seconds']:.2f} s, {found['rows_per_second']:,.0f} rows/s",
        "selected": size,
        "certified": f"yes: {proof}" if found["certified"] else f"no: {doubt}",
        "method": f"{found['method']}, condition number "
        f"{'infinite' if condition is None else f'{condition:.1e}'}",
        "state": f"{size_text(found['state_bytes'])} in memory",
        "written": found["output"],
    }
