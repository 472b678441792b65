"""prepare: converts raw conversations to token shards, with Ray Data.

    rayconteur prepare PIPELINE [--show 3]

Writes to the store: `corpus/split=train` and `corpus/split=held_out` (Parquet: source, line, input_ids, supervised,
num_tokens, num_targets, messages), and `quarantine.jsonl` with every line that was set aside, and the reason; for
`base_model: new` also `base/`, the model before training (workflows/corpus/new_model.py).

`train.objective` decides what a line must contain. For a preference pair, `input_ids`, `supervised` and `messages`
are the prompt with the chosen reply, `other_input_ids` and `other_supervised` the prompt with the rejected one. For a
labelled reply (KTO), the first are the prompt with this reply, the others the prompt with a reply to another prompt
of the same file (`workflows.corpus.conversations.mismatched_replies`, over blocks of 512 lines). In both, only the
last reply is supervised, `num_tokens` counts the prompt once, since training computes it once, and only the prompt
decides the split.
"""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs
import ray
import ray.data

from models.chat import end_token_ids
from models.chat.knowledge import CLOSES
from workflows.cluster.board import watching
from workflows.cluster.capacity import Workers
from workflows.cluster.errors import write_traceback
from workflows.cluster.workers import note_if_busy
from workflows.corpus.chat_tokenizer import chat_tokenizer, read_template, template_notes
from workflows.corpus.files.sources import SourceFile, is_packed, source_files
from workflows.corpus.inspection.examples import FaultExamples
from workflows.corpus.inspection.inspect import fault_examples, inspect_corpus
from workflows.corpus.inspection.tally import FaultExample, inspection_file
from workflows.corpus.lines import LINES_PER_BLOCK, TRACEBACK, Shared, encode_lines, read_lines, read_words
from workflows.corpus.new_model import CHAT_TEMPLATE, make_base, with_base
from workflows.corpus.revision.contamination import (
    Contaminated,
    contamination_text,
    find_contamination,
    read_references,
    reference_files,
    without_contaminated,
)  # fmt: skip
from workflows.corpus.revision.near_duplicates import NearDuplicates, find_near_duplicates
from workflows.corpus.revision.quotas import over_quota
from workflows.corpus.revision.revise import revise
from workflows.corpus.revision.separation import separate
from workflows.corpus.rows import CorpusRow
from workflows.corpus.set_aside import SetAside, set_aside_text
from workflows.corpus.split import HELD_OUT, LEFT_OUT, QUARANTINE, TRAIN, all_sides, fill_empty_side, used_files
from workflows.corpus.user_filter import UserFilter
from workflows.figures import ContaminationFigures, NearDuplicateFigures, PrepareFigures
from workflows.spec import NEW_MODEL, DataSpec, PipelineSpec
from workflows.stage import Context, StageFailed

_STARTED_EARLY = 16
# About the size of conversations relative to their compressed files.
_PACKED_FACTOR = 6
# Above this share of cut conversations, print a note.
_MANY_CUT = 0.05
_MAX_TRACEBACKS = 5
# The figures that are sums over the rows.
_COUNTS = ("conversations", "held_out_conversations", "quarantined", "left_out", "tokens", "supervised_tokens",
           "held_out_tokens", "truncated", "longest")  # fmt: skip


def run(context: Context) -> PrepareFigures:
    """Write the corpus, look for near-duplicates in it, and return its statistics."""
    spec, store = context.spec, context.store
    store.clear("prepare", context.key)
    files = source_files(spec)
    note_if_busy(Workers("prepare", 1, {"CPU": 1.0}, {}), context.progress)
    if spec.base_model == NEW_MODEL:
        make_base(context, files)
        spec = with_base(spec, store, context.key)
    if spec.data.chat_template is not None:
        template = read_template(spec.data.chat_template)
        store.write_file(store.path("prepare", context.key, CHAT_TEMPLATE), template.encode())
        spec = with_base(spec, store, context.key)
    _start_workers(_set_block_size(files))
    shared = _shared(context, spec, files)
    _write_corpus(context, files, shared)
    paths = [file.path for file in files]
    figures, crashes = _statistics(context, paths)
    _note_crashes(context, crashes)
    _check(context, figures, paths)
    examples = fault_examples(store.filesystem, _corpus(context), spec.data, files)
    alike, near, shown = _near_duplicates(context, shared, examples)
    contamination, contaminated = _contamination(context, paths)
    _check_keys(context)
    _apply_quotas(context)
    if _is_revised(spec.data):
        figures, _ = _statistics(context, paths)
        _check(context, figures, paths)
    _show_set_aside(context, figures)
    figures = _with_both_sides(context, figures, paths)
    inspection = inspect_corpus(examples, spec.data, files, near, shown, contaminated)
    store.write_file(inspection_file(store, context.key), json.dumps(inspection.to_json()).encode())
    for source in inspection.sources:
        if not source.conversations:
            context.progress.note(
                f"prepare: no conversation of the source {source.name} is left: {source.left_out:,} are left out, "
                f"{source.quarantined:,} cannot be used"
            )
    return replace(figures, near_duplicates=alike, contamination=contamination)


def _is_revised(data: DataSpec) -> bool:
    """Whether rows of the written corpus may have been moved or left out."""
    revises = data.deduplicate.action != "report" or data.check_against.action == "drop"
    return revises or bool(data.filters.max_language_share)


def _near_duplicates(
    context: Context, shared: Shared, examples: FaultExamples
) -> tuple[NearDuplicateFigures, NearDuplicates, list[FaultExample]]:
    """Look for them, with some as examples, and do about them what `data.deduplicate` says."""
    filesystem, corpus, data = context.store.filesystem, _corpus(context), context.spec.data
    settings = data.deduplicate
    what = settings.compare
    unit = "conversations compared" if what == "conversations" else "conversations whose replies are compared"
    with watching(context.progress, unit) as board:
        found = find_near_duplicates(filesystem, used_files(filesystem, corpus), settings, board)
        shown = list(examples.near_duplicates(found))
        figures = separate(filesystem, corpus, data, shared, found)
    if figures.on_both_sides:
        context.progress.note(
            f"prepare: {figures.on_both_sides:,} held-out {what} have a near-duplicate among those to train "
            "on, so what is measured on them flatters the model; set data.deduplicate.action to drop or split"
        )
    if figures.replies and settings.action == "drop":
        context.progress.note(
            f"prepare: {figures.replies - figures.clusters:,} replies repeat another one and are not trained on "
            "(data.deduplicate)"
        )
    return figures, found, shown


def _contamination(context: Context, paths: list[str]) -> tuple[ContaminationFigures | None, list[Contaminated]]:
    """Look for reference texts in the corpus; raises StageFailed where `data.check_against.action` is fail."""
    index = read_references(reference_files(context.spec))
    if index is None:
        return None, []
    filesystem, action = context.store.filesystem, context.spec.data.check_against.action
    with watching(context.progress, "conversations checked against reference texts") as board:
        found = find_contamination(filesystem, used_files(filesystem, _corpus(context)), index, board)
    if found and action == "fail":
        raise StageFailed(f"data.check_against: {contamination_text(found, paths)}; set its action to drop or report")
    if found and action == "drop":
        revise(filesystem, _corpus(context), without_contaminated(found))
    elif found:
        context.progress.note(
            f"prepare: {contamination_text(found, paths)}; set data.check_against.action to drop to leave them out"
        )
    figures = ContaminationFigures(
        conversations=len({each.number for each in found}),
        references=len({each.reference for each in found}),
        of=len(index.names),
    )
    return figures, found


def _apply_quotas(context: Context) -> None:
    if shares := context.spec.data.filters.max_language_share:
        filesystem, corpus = context.store.filesystem, _corpus(context)
        revise(filesystem, corpus, over_quota(filesystem, corpus, shares))


def _corpus(context: Context) -> str:
    return context.store.path("prepare", context.key, "corpus")


def _shared(context: Context, spec: PipelineSpec, files: list[SourceFile]) -> Shared:
    """What all tasks that encode need; notes what a user may not expect of the chat template."""
    tokenizer = chat_tokenizer(spec)
    end_token_ids(tokenizer)  # a template without an end token fails here, not on every line
    for note in template_notes(spec, tokenizer):
        context.progress.note(f"prepare: {note}")
    # A worker that unpickles the tokenizer need not import torch, which takes longer than a thousand conversations.
    return Shared(
        spec=spec.model_dump_json(),
        tokenizer=ray.put(tokenizer),
        words=read_words(spec.data.filters),
        keep=_user_filter(context),
        paths=[file.path for file in files],
    )


def _write_corpus(context: Context, files: list[SourceFile], shared: Shared) -> None:
    """Read, render and split all conversations as a stream."""
    data, examples = context.spec.data, context.spec.train.objective.examples
    reading = (data.fields, data.same_role, data.knowledge) if examples == "judged" else None
    with watching(context.progress, "lines") as board:
        items = [
            {"source": index, "uri": file.source, "path": file.path, "limit": file.limit or -1, "field": file.field}
            for index, file in enumerate(files)
        ]
        (
            ray.data.from_items(items, override_num_blocks=len(items))
            # With other resources than the encoding, Ray Data does not fuse both into one task per file.
            .map_batches(read_lines, batch_size=1, fn_kwargs={"judged": reading, "board": board}, num_cpus=0)
            .map_batches(
                encode_lines,
                batch_size=LINES_PER_BLOCK,
                fn_kwargs={"shared": shared, "board": board},
                batch_format="pyarrow",
            )
            .write_parquet(_corpus(context), filesystem=context.store.filesystem, partition_cols=["split"])
        )


def _user_filter(context: Context) -> "ray.ObjectRef[UserFilter] | None":
    """The function `data.filter`, imported here once so that a mistake in it is told at once; raises StageFailed."""
    if (path := context.spec.data.filter) is None:
        return None
    keep = UserFilter.of(path)
    keep.function()
    return ray.put(keep)


def _start_workers(blocks: int) -> None:
    """Start workers that import what encoding needs, one a block, while this process loads the tokenizer."""

    def start() -> None:
        import transformers.tokenization_utils_tokenizers  # noqa: F401

    cpus = int(ray.cluster_resources().get("CPU", 1))
    starter = ray.remote(num_cpus=1)(start)
    for _ in range(min(cpus, blocks, _STARTED_EARLY)):
        starter.remote()


def _set_block_size(files: list[SourceFile]) -> int:
    """One task reads a file and streams its lines in blocks; all CPUs render the blocks. Returns about how many."""
    size = sum(file.size * (_PACKED_FACTOR if is_packed(file) else 1) for file in files)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    block = min(64 << 20, max(256 << 10, size // (4 * cpus)))
    ray.data.DataContext.get_current().target_max_block_size = block
    return max(len(files), size // block)


def _statistics(context: Context, paths: list[str]) -> tuple[PrepareFigures, dict[str, str]]:
    """Count over the written shards, a batch at a time; also writes quarantine.jsonl."""
    store = context.store
    counts = Counter(dict.fromkeys(_COUNTS, 0))
    path = _corpus(context)
    if store.filesystem.get_file_info(path).type == pa.fs.FileType.NotFound:  # nothing was written
        raise StageFailed(f"data.sources: no lines in {', '.join(paths)}")
    parts = all_sides(store.filesystem, path)
    columns = ["split", "num_tokens", "num_targets", "truncated"]
    for batch in parts.to_batches(columns=columns):
        for row in batch.to_pylist():
            _count(counts, row)
    groups = SetAside()
    crashes: dict[str, str] = {}
    bad = parts.to_batches(
        columns=["source", "line", "reason", "messages"],
        filter=pa.dataset.field("split").isin([QUARANTINE, LEFT_OUT]),
    )
    with store.filesystem.open_output_stream(store.path("prepare", context.key, "quarantine.jsonl")) as stream:
        for batch in bad:
            for row in batch.to_pylist():
                reason, _, traceback = row["reason"].partition(TRACEBACK)
                record = {"file": paths[row["source"]], "line": row["line"], "reason": reason}
                stream.write((json.dumps({**record, "text": row["messages"]}, ensure_ascii=False) + "\n").encode())
                groups.add(reason, row["source"], paths[row["source"]], row["line"])
                if traceback and len(crashes) < _MAX_TRACEBACKS:
                    crashes.setdefault(reason, traceback)
    return PrepareFigures(set_aside=groups.groups(), near_duplicates=None, contamination=None, **counts), crashes


def _note_crashes(context: Context, crashes: dict[str, str]) -> None:
    for reason, traceback in crashes.items():
        file = write_traceback(traceback)
        context.progress.note(f"prepare: lines are set aside for {reason} (details in {file})", traceback=file)


def _count(counts: Counter[str], row: CorpusRow) -> None:
    if row["split"] in (QUARANTINE, LEFT_OUT):
        counts["quarantined" if row["split"] == QUARANTINE else "left_out"] += 1
        return
    held_out = row["split"] == HELD_OUT
    counts["held_out_conversations" if held_out else "conversations"] += 1
    counts["held_out_tokens" if held_out else "tokens"] += row["num_tokens"]
    counts["supervised_tokens"] += 0 if held_out else row["num_targets"]
    counts["truncated"] += row["truncated"]
    counts["longest"] = max(counts["longest"], row["num_tokens"])


def _check(context: Context, figures: PrepareFigures, paths: list[str]) -> None:
    """Raise StageFailed if the corpus cannot be trained on."""
    most = context.spec.data.max_bad_share
    good = figures.conversations + figures.held_out_conversations
    bad, lines = figures.quarantined, good + figures.quarantined + figures.left_out
    listing = context.store.path("prepare", context.key, "quarantine.jsonl")
    if lines == 0:
        raise StageFailed(f"data.sources: no lines in {', '.join(paths)}")
    if good == 0:
        raise StageFailed(
            f"data.sources: none of {lines} lines can be used, by reason, with the first line of each:\n"
            f"{set_aside_text(figures.set_aside)}\nall of them: {listing}"
        )
    if bad > most * lines:
        raise StageFailed(
            f"data.max_bad_share: {bad} of {lines} lines ({bad / lines:.1%}) cannot be used, more than {most:.1%}; "
            f"by reason, with the first line of each:\n{set_aside_text(figures.set_aside)}\nall of them: {listing}"
        )


def _show_set_aside(context: Context, figures: PrepareFigures) -> None:
    """Show what the corpus does not have, and how much of it is cut."""
    data, good = context.spec.data, figures.conversations + figures.held_out_conversations
    if figures.truncated > _MANY_CUT * good:
        context.progress.note(
            f"prepare: {figures.truncated:,} of {good:,} conversations ({figures.truncated / good:.0%}) are "
            f"longer than data.max_length, {data.max_length} tokens, and are cut; raise it or set data.truncate: left"
        )
    if figures.set_aside:
        listing = context.store.path("prepare", context.key, "quarantine.jsonl")
        context.progress.result(
            "set_aside",
            {"groups": [group.to_json() for group in figures.set_aside], "listing": listing},
            f"set aside, by reason, with the first line of each:\n{set_aside_text(figures.set_aside)}",
        )


def _check_keys(context: Context) -> None:
    """Raise StageFailed if no conversation has the key of `data.group_by` or of `data.knowledge`; note how many lack
    it.
    """
    data, field = context.spec.data, pa.dataset.field
    if data.group_by is not None:
        _check_key(context, "group_by", data.group_by, field("group").is_valid(), "are split by their text")
    if data.knowledge is not None:
        has_sources = pc.match_substring(field("messages"), CLOSES)
        _check_key(context, "knowledge", data.knowledge, has_sources, "have no passages in their prompts")


def _check_key(context: Context, name: str, key: str, is_there: Any, without: str) -> None:
    parts = all_sides(context.store.filesystem, _corpus(context))
    is_good = pa.dataset.field("split").isin([TRAIN, HELD_OUT])
    total = parts.count_rows(filter=is_good)
    lacking = parts.count_rows(filter=is_good & ~is_there)
    if lacking == total:
        nested = ", or a key within another as in metadata.user" if name == "group_by" else ""
        raise StageFailed(
            f"data.{name}: none of {total:,} conversations has {key!r}; name a key of the records{nested}"
        )
    if lacking:
        context.progress.note(
            f"prepare: {lacking:,} of {total:,} conversations have no {key!r} (data.{name}) and {without}"
        )


def _with_both_sides(context: Context, figures: PrepareFigures, paths: list[str]) -> PrepareFigures:
    """If few conversations leave one side empty by chance, move the nearest one there. Raises StageFailed if all have
    the same text.
    """
    counts = {TRAIN: figures.conversations, HELD_OUT: figures.held_out_conversations}
    empty = next((side for side, count in counts.items() if count == 0), None)
    if empty is None:
        return figures
    is_pair = context.spec.train.objective.examples != "conversations"
    corpus = _corpus(context)
    moved = fill_empty_side(context.store.filesystem, corpus, empty, is_pair)
    if not moved:
        raise StageFailed(
            f"data.sources: all {sum(counts.values())} conversations have the same text; training and evaluation "
            "need different ones: add conversations"
        )
    side = "trained on" if empty == TRAIN else "held out"
    share, total = context.spec.data.held_out_share, sum(counts.values())
    context.progress.note(
        f"prepare: with data.held_out_share {share:g}, by chance none of {total} conversations would be {side}; "
        f"{moved} {'is' if moved == 1 else 'are'} {side} anyway"
    )
    return _statistics(context, paths)[0]
