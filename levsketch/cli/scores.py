"""``levsketch scores``: exact attention scores of queries, from a set alone."""

from __future__ import annotations

import argparse
import io
from contextlib import closing
from typing import Any

import numpy as np
import scipy.sparse

from levsketch import LeverageKeySelector

from .exits import DATA, OK, CommandError, warnings_in_one_line
from .npy import NpyHeader, read_matrix_header
from .output import check_output, npz_bytes, print_facts, print_json, write_output
from .progress import ReadingProgress
from .read_ahead import Block, read_blocks, refuse_bad_values
from .setfile import load_set


def run(args: argparse.Namespace) -> int:
    """Score queries as the arguments say, write the scores, print a summary; return 0."""
    with warnings_in_one_line():
        selector = load_set(args.set).selector
        selector.certified_  # noqa: B018 - what is to be warned of, is warned of here
    queries = read_matrix_header(args.queries)
    if queries.columns != selector.n_features_in_:
        raise CommandError(
            DATA,
            f"{args.queries}: has {queries.columns} columns, but the keys of {args.set} have "
            f"{selector.n_features_in_}",
        )
    check_output(args.output, overwrite=args.overwrite, inputs=(args.set, args.queries))
    with ReadingProgress([queries], quiet=args.quiet) as progress:
        found = (_dense if args.dense else _heavy)(selector, queries, args, progress)
        data = _bytes_of(found, selector)
        seconds = progress.seconds
    write_output(args.output, data)
    facts = {
        "output": args.output,
        "queries": queries.rows,
        "keys_seen": selector.n_samples_seen_,
        "selected": len(selector.indices_),
        "eps": float(selector.eps),
        "dense": bool(args.dense),
        "shape": list(found.shape),
        "entries": int(found.size if args.dense else found.nnz),
        "certified": selector.certified_,
        "seconds": seconds,
    }
    if args.json:
        print_json(facts)
    elif not args.quiet:
        print_facts(_summary(facts))
    return OK


def _heavy(
    selector: LeverageKeySelector,
    queries: NpyHeader,
    args: argparse.Namespace,
    progress: ReadingProgress,
) -> Any:
    """Return the scores >= eps of all queries, as one CSR array."""
    parts = [scipy.sparse.csr_array((0, selector.n_samples_seen_), dtype=np.float32)]
    with closing(read_blocks([queries], args.block_bytes)) as blocks:
        for block in blocks:
            parts.append(_scored(selector.heavy_scores, block))
            progress.advance(len(block.rows), block.rows.nbytes)
    return scipy.sparse.vstack(parts[1:] or parts, format="csr")


def _dense(
    selector: LeverageKeySelector,
    queries: NpyHeader,
    args: argparse.Namespace,
    progress: ReadingProgress,
) -> Any:
    """Return the scores of all queries against the selected keys."""
    parts = [np.zeros((0, len(selector.indices_)), np.float32)]
    with closing(read_blocks([queries], args.block_bytes)) as blocks:
        for block in blocks:
            parts.append(_scored(selector.transform, block))
            progress.advance(len(block.rows), block.rows.nbytes)
    return np.concatenate(parts[1:] or parts)


def _scored(score: Any, block: Block) -> Any:
    try:
        return score(block.rows)
    except ValueError as error:
        refuse_bad_values(block)
        raise CommandError(DATA, f"{block.source.path}: {error}") from error


def _bytes_of(found: Any, selector: LeverageKeySelector) -> bytes:
    """Return the file's bytes: for scipy.sparse.load_npz, or with dense scores for numpy.load."""
    if isinstance(found, np.ndarray):
        return npz_bytes({"scores": found, "indices": selector.indices_})
    buffer = io.BytesIO()
    scipy.sparse.save_npz(buffer, found, compressed=False)
    return buffer.getvalue()


def _summary(facts: dict[str, Any]) -> dict[str, object]:
    """Return the lines that people read."""
    if facts["dense"]:
        kind = f"every score against the {facts['selected']:,} selected keys"
        how = 'numpy.load(...)["scores"]'
    else:
        kind = f"{facts['entries']:,} scores >= {facts['eps']:g}"
        if facts["certified"]:
            kind += f": every such score against all {facts['keys_seen']:,} keys"
        how = "scipy.sparse.load_npz"
    return {
        "queries": f"{facts['queries']:,} in {facts['seconds']:.2f} s",
        "scores": kind,
        "written": f"{facts['output']} (open it with {how})",
    }
