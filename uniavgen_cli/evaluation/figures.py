"""What nano's suite says: each figure with its bar, its controls and the drawn truth's score. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
Rows = Mapping[str, Sequence[Row]]  # of each part, one a clip


@dataclass(frozen=True)
class Control:
    """The same figure where it should fail: `limit` is to be kept away from, above it if `over`."""

    name: str
    key: str
    limit: float | None = None
    over: bool = False
    per: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a part.

    `key` names the values of the rows, of which the mean is taken, or the median, or for a share the sum of
    `key` over the sum of `per`. `bar` is to be reached from above or below as `higher` says: as it is, times
    the truth's score (`of_truth`) or added to it (`over_truth`); None: reported only. `truth` is the key of
    the drawn truth's score by the same instrument.
    """

    part: str
    name: str
    key: str
    unit: str
    higher: bool = True
    bar: float | None = None
    of_truth: bool = False
    over_truth: bool = False
    per: str = ""
    median: bool = False
    truth: str = ""
    truth_per: str = ""
    controls: tuple[Control, ...] = ()


ATTRIBUTE_NAMES = ("hair_colour", "hair_style", "skin", "glasses", "background_colour")

FIGURES = (
    Figure(part="codecs", name="picture through the VAE", key="vae_psnr", unit="dB", bar=30.0),
    Figure(part="codecs", name="mouth through the VAE", key="vae_mouth_psnr", unit="dB", bar=26.0),
    Figure(part="codecs", name="opening after the VAE", key="vae_opening", unit="r", truth="true_opening"),
    Figure(part="codecs", name="phoneme errors after the vocoder", key="vocoder_errors", unit="share",
           higher=False, per="phonemes", bar=0.02, over_truth=True, truth="true_errors",
           truth_per="phonemes"),
    Figure(part="animate", name="opening with the truth", key="opening", unit="r", bar=0.85,
           truth="true_opening", controls=(Control("another sentence", "opening_other", 0.1),
                                           Control("A2V off", "opening_alone", 0.2))),
    Figure(part="animate", name="its best lag", key="lag", unit="frames", higher=False, bar=0.0, median=True),
    Figure(part="animate", name="opening at the best lag", key="opening_best", unit="r"),
    Figure(part="animate", name="first frame against the picture", key="first_psnr", unit="dB", bar=20.0),
    Figure(part="animate", name="person like the picture", key="identity", unit="cos", bar=0.95,
           of_truth=True, truth="true_identity", controls=(Control("another person", "identity_other"),)),
    Figure(part="animate", name="flicker", key="flicker", unit="levels", higher=False, truth="true_flicker"),
    Figure(part="animate", name="motion", key="motion", unit="%", truth="true_motion"),
    Figure(part="generate", name="opening with its own sound", key="opening", unit="r", bar=0.80,
           truth="true_opening", controls=(Control("another's sound", "opening_other", 0.1),)),
    Figure(part="generate", name="opening with the planned words", key="opening_plan", unit="r",
           truth="true_opening_plan", controls=(Control("another's words", "opening_plan_other", 0.1),)),
    Figure(part="generate", name="phoneme errors", key="errors", unit="share", higher=False, per="phonemes",
           bar=0.15, over_truth=True, truth="true_errors", truth_per="true_phonemes",
           controls=(Control("another's text", "errors_other", 0.9, True, "other_phonemes"),)),
    Figure(part="generate", name="looks as asked", key="named_right", unit="share", per="named", bar=0.90,
           truth="true_named_right", truth_per="named",
           controls=(Control("another's prompt", "named_right_other", None, False, "named_other"),)),
    *(
        Figure(part="generate", name=f"- {name.replace('_', ' ')}", key=f"{name}_right", unit="share",
               truth=f"true_{name}_right")
        for name in ATTRIBUTE_NAMES
    ),
    Figure(part="generate", name="emotion seen as asked", key="emotion_seen", unit="share", bar=0.80,
           of_truth=True, truth="true_emotion_seen", controls=(Control("another's", "emotion_seen_other"),)),
    Figure(part="generate", name="emotion heard as asked", key="emotion_heard", unit="share", bar=0.80,
           of_truth=True, truth="true_emotion_heard",
           controls=(Control("another's", "emotion_heard_other"),)),
    Figure(part="generate", name="seconds to make it", key="seconds", unit="s", higher=False),
    Figure(part="person", name="nearest of 8 voices is right", key="voice_right", unit="share", bar=0.90,
           truth="true_voice_right", controls=(Control("chance", "voice_chance"),)),
    Figure(part="person", name="voice like the given one", key="voice", unit="cos", truth="true_voice",
           controls=(Control("the other seven", "voice_other"),)),
    Figure(part="person", name="person like the picture", key="identity", unit="cos", bar=0.95,
           of_truth=True, truth="true_identity", controls=(Control("another person", "identity_other"),)),
    Figure(part="person", name="phoneme errors", key="errors", unit="share", higher=False, per="phonemes",
           truth="true_errors", truth_per="true_phonemes"),
    Figure(part="dub", name="with text: its opening with the lips", key="text", unit="r", bar=0.6,
           truth="true_heard", controls=(Control("another's lips", "text_other", 0.1),)),
    Figure(part="dub", name="with text: phoneme errors", key="errors", unit="share", higher=False,
           per="phonemes", truth="true_errors", truth_per="phonemes"),
    Figure(part="dub", name="from lips alone: its opening with them", key="lips", unit="r", bar=0.4,
           truth="true_heard", controls=(Control("another's lips", "lips_other", 0.1),)),
    Figure(part="continue", name="seam, picture", key="seam_picture", unit="x", higher=False, bar=1.5,
           truth="true_seam_picture", controls=(Control("a cut to another", "cut_picture"),)),
    Figure(part="continue", name="seam, sound", key="seam_sound", unit="x", higher=False, bar=1.5,
           truth="true_seam_sound", controls=(Control("a cut into another", "cut_sound"),)),
    Figure(part="continue", name="opening with its own sound", key="opening", unit="r"),
    Figure(part="continue", name="person like the given part", key="identity", unit="cos",
           truth="true_identity", controls=(Control("another person", "identity_other"),)),
    Figure(part="photo", name="mouth with the loudness", key="mouth", unit="r",
           controls=(Control("another's sound", "mouth_other"),)),
    Figure(part="photo", name="first frame against the photograph", key="first_psnr", unit="dB"),
    Figure(part="photo", name="all frames against it", key="kept_psnr", unit="dB"),
    Figure(part="photo", name="likeness of structure with it", key="kept_ssim", unit="ssim"),
)  # fmt: skip


def summary(rows: Rows) -> list[dict[str, Any]]:
    """Every figure that the rows hold: value, standard error, bar, controls, truth, and whether it is met.

    A figure is met when its bar is and every control keeps its limit; None where it has no bar.
    """
    found = []
    for figure in FIGURES:
        held = [row for row in rows.get(figure.part, ()) if row.get(figure.key) is not None]
        if not held:
            continue
        value, error = _value(held, figure.key, figure.per, figure.median)
        truth = _value(held, figure.truth, figure.truth_per)[0] if figure.truth else None
        bar = figure.bar
        if bar is not None and truth is not None:
            bar = bar * truth if figure.of_truth else bar + truth if figure.over_truth else bar
        controls = [
            {"name": control.name, "value": _value(held, control.key, control.per)[0], "limit": control.limit,
             "over": control.over}
            for control in figure.controls
        ]  # fmt: skip
        met = None
        if bar is not None:
            met = abs(value) <= bar if figure.median else value >= bar if figure.higher else value <= bar
            met = met and all(_kept(control) for control in controls)
        found.append(
            {
                "part": figure.part,
                "name": figure.name,
                "unit": figure.unit,
                "value": value,
                "error": error,
                "clips": len(held),
                "bar": bar,
                "higher": figure.higher,
                "met": met,
                "truth": truth,
                "controls": controls,
            }
        )
    return found


def _kept(control: Mapping[str, Any]) -> bool:
    if control["limit"] is None:
        return True
    if control["over"]:
        return bool(control["value"] >= control["limit"])
    return bool(control["value"] < control["limit"])


def _value(rows: Sequence[Row], key: str, per: str = "", median: bool = False) -> tuple[float, float]:
    """The mean (or median, or quotient of sums) of what the rows hold, and its standard error."""
    rows = [row for row in rows if row.get(key) is not None]
    if not rows:
        return float("nan"), float("nan")
    values = np.array([row[key] for row in rows], float)
    if median:
        return float(np.median(values)), float(values.std() / np.sqrt(len(values)))
    weights = np.array([row[per] if per else 1 for row in rows], float)
    value = float(values.sum() / max(weights.sum(), 1))
    # of a quotient of sums, by the spread of what each row adds to it
    return value, float(np.sqrt(((values - value * weights) ** 2).sum()) / max(weights.sum(), 1))


HEAD = ("part", "", "value", "bar", "", "truth", "control")


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The summary as rows of text under HEAD."""
    lines = []
    for figure in found:
        bar = "" if figure["bar"] is None else f"{'>=' if figure['higher'] else '<='} {figure['bar']:.3g}"
        verdict = {None: "", True: "met", False: "missed"}[figure["met"]]
        controls = ", ".join(
            f"{control['name']} {control['value']:.3f}" + _limit(control) for control in figure["controls"]
        )
        value = f"{figure['value']:.3f} +-{figure['error']:.3f} {figure['unit']}"
        truth = "" if figure["truth"] is None else f"{figure['truth']:.3f}"
        lines.append([figure["part"], figure["name"], value, bar, verdict, truth, controls])
    return lines


def _limit(control: Mapping[str, Any]) -> str:
    if control["limit"] is None:
        return ""
    return f" ({'>=' if control['over'] else '<'} {control['limit']:g})"
