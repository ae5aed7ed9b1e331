"""What each task gives, makes and lets interact: a task is a row, no loop knows its name."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row of the task table (UniAVGen, arXiv 2511.03334, section 3).

    `given_video` and `given_audio` say how much of each stream is given: "none", "first" (the picture),
    "part" (a clip's end) or "all". `a2v` (Q: video, K/V: audio) and `v2a` (Q: audio, K/V: video) are the
    directions of the conditional pass; the negative pass has those in `negative_a2v` and `negative_v2a`, once
    modality-aware guidance no longer holds both off. `odds` is the task's share of the training steps.
    """

    given_video: str
    given_audio: str = "none"
    reference_voice: bool = False
    a2v: bool = True
    v2a: bool = True
    negative_a2v: bool = True
    negative_v2a: bool = True
    odds: int = 0


TASKS = {
    "generate": Task(given_video="first", odds=4),
    "generate-voice": Task(given_video="first", reference_voice=True, v2a=False, odds=1),
    "continue": Task(given_video="part", given_audio="part", odds=1),
    "continue-voice": Task(given_video="part", given_audio="part", reference_voice=True),
    "dub": Task(given_video="all", a2v=False, negative_a2v=False, odds=2),
    "dub-voice": Task(given_video="all", reference_voice=True, a2v=False, negative_a2v=False),
    "animate": Task(given_video="first", given_audio="all", v2a=False, negative_v2a=False, odds=2),
    # what comes after the first window of a long clip, beside the continuations
    "dub-on": Task(given_video="all", given_audio="part", a2v=False, negative_a2v=False),
    "animate-on": Task(given_video="part", given_audio="all", v2a=False, negative_v2a=False),
}


def task_row(command: str, *, with_voice: bool) -> Task:
    """The row of a command: generate, dub, continue (each also with a voice given) or animate."""
    return TASKS[f"{command}-voice" if with_voice else command]


def following_row(command: str) -> Task:
    """The row of every window of a long clip after its first, whose voice is in what it keeps."""
    return TASKS["continue" if command in ("generate", "continue") else f"{command}-on"]
