"""What still runs of a command that was started in a session of its own."""

from pathlib import Path


def in_session(leader: int) -> list[str]:
    """The names of the processes alive in a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, of = rest.split()[:4]
        if int(of) == leader and state != "Z":
            found.append(name)
    return found
