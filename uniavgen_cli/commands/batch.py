"""`uniavgen batch`: many clips from a job file, of which nothing is lost and nothing is made twice."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import InputError, Interrupted, UniAVGenError

if TYPE_CHECKING:
    from uniavgen_cli.engine.batch import Result
    from uniavgen_cli.engine.jobs import Problem


def batch(
    jobs: Annotated[
        Path, o.Argument(help="The jobs: a .yaml, .csv or .jsonl file.", metavar="JOBS", show_default=False)
    ],
    output: Annotated[
        Path, o.Option("--output", "-o", help="The folder for the clips and the journal.", metavar="DIR")
    ],
    workers: Annotated[
        int, o.Option("--workers", help="How many processes make clips, each with the model.", min=1, max=256)
    ] = 1,
    fail_fast: Annotated[
        bool, o.Option("--fail-fast", help="Stop at the first job that fails; by default the rest goes on.")
    ] = False,
    overwrite: Annotated[
        bool, o.Option("--overwrite", help="Replace files in DIR that are not the batch's.")
    ] = False,
    preset: Annotated[
        str | None,
        o.Option(
            "--preset", envvar="UNIAVGEN_PRESET", help="The model of jobs that name none.", metavar="NAME"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        o.Option("--seed", help="Of jobs that name none; else each has its own.", min=0, metavar="N"),
    ] = None,
    steps: o.StepsOption = None,
    size: o.SizeOption = None,
    private: o.PrivateOption = False,
    unlimited: o.UnlimitedOption = False,
    set: o.SetOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Make every clip of a job file; a second run makes only what is missing or changed.

    A job has a task (generate, dub, animate or continue), what that command takes (prompt, speech, face,
    voice, voice_text, video, sound, duration, seed, steps, size, ...), and if you like an output, preset and
    set. YAML: a list of jobs, or `defaults:` and `jobs:`. JSONL: a job a line. CSV: a job a row. Files are
    looked for beside the job file. All of it is checked before the first clip.

    \b
    Examples:
      uniavgen batch jobs.yaml -o clips
      uniavgen batch jobs.csv -o clips --workers 2 --steps 10
    """
    from uniavgen_cli.engine.batch import Batch, Journal
    from uniavgen_cli.engine.jobfile import read_rows
    from uniavgen_cli.engine.jobs import check_jobs

    options = {"preset": preset, "seed": seed, "steps": steps, "size": size, "set": set}
    options |= {"private": private or None, "unlimited": unlimited or None}
    defaults = {name: value for name, value in options.items() if value is not None}
    journal = Journal(output, overwrite)
    rows = read_rows(jobs)
    checked, problems = check_jobs(rows, jobs.parent, defaults, journal.may_write)
    if problems:
        _refuse(jobs, len(rows), problems)
    results: list[Result] = []

    def report(result: "Result") -> None:
        results.append(result)
        if result.status != "kept" and not quiet:
            _output.note(_line(jobs, result, len(results), len(checked)))

    try:
        Batch(checked, journal, workers, fail_fast, report).run()
    except KeyboardInterrupt:
        whole = sum(result.status != "failed" for result in results)
        raise Interrupted(
            f"interrupted; {whole} of {len(checked)} clips are whole in {output}",
            "the same command makes the rest",
        ) from None
    _report(output, results, len(checked), json, quiet)


def _refuse(file: Path, num_rows: int, problems: "list[Problem]") -> None:
    """Names each bad job and raises an error of their kind."""
    for problem in problems:
        _output.note(f"{file}:{problem.line}: job {problem.number}: {' '.join(str(problem.error).split())}")
    kinds = {type(problem.error) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else InputError
    raise kind(f"{len(problems)} of {num_rows} jobs can't be done, and none was begun", "see the lines above")


def _line(file: Path, result: "Result", count: int, total: int) -> str:
    head = f"{count}/{total} {result.status} {result.job.name}"
    if result.error is None:
        notes = "".join(f"; {warning}" for warning in result.warnings)
        return f"{head} in {result.seconds:.1f} s, seed {result.job.plan.request.seed}{notes}"
    return f"{head} ({file}:{result.job.line}): {' '.join(str(result.error).split())}"


def _report(output: Path, results: "list[Result]", total: int, json: bool, quiet: bool) -> None:
    results = sorted(results, key=lambda result: result.job.number)
    counts = {status: sum(r.status == status for r in results) for status in ("made", "kept", "failed")}
    if json:
        rows: list[dict[str, Any]] = [
            {
                "number": result.job.number,
                "line": result.job.line,
                "status": result.status,
                "path": str(output / result.job.name),
                "seed": result.job.plan.request.seed,
                "seconds": round(result.seconds, 3),
                "error": None if result.error is None else str(result.error),
                "warnings": list(result.warnings),
            }
            for result in results
        ]
        _output.data_json({"folder": str(output), **counts, "jobs": rows})
    else:
        for result in results:
            if result.status != "failed":
                _output.data(str(output / result.job.name))
        if not quiet:
            _output.note(", ".join(f"{count} {status}" for status, count in counts.items()))
    if failed := [result.error for result in results if result.error is not None]:
        kinds = {type(error) for error in failed}
        kind = kinds.pop() if len(kinds) == 1 else UniAVGenError
        left = f", {total - len(results)} not begun" if len(results) < total else ""
        raise kind(f"{len(failed)} of {total} jobs failed{left}", "the same command tries them again")
