"""Captions of spoken_digits: a small closed grammar of English, and its words as tokens.

A caption names its item's digit, as a word or as a numeral, and most name details too: how thick the strokes of the
picture are and where they lean, or who speaks, how loudly and how fast. So a text says more than a class, and each
other modality knows some of it. What a pair corpus tells is what its other modality can know; an item of all three
modalities is told of in either way, or in both at once.

A caption is a template, all of one kind being equally likely, whose slots are filled from the item's attributes; every
choice among words is uniform, except that three digits in four are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from data_prep.spoken.recordings import SPEAKERS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Slot -> (attribute that fills it, choices of words for each of its classes).
PHRASES: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "thick": ("weight", (("thin", "fine"), ("medium", "moderate"), ("thick", "bold"))),
    "leaning": (
        "slant",
        (
            ("leaning left", "slanted left", "tilted left"),
            ("standing upright", "standing straight", "without slant"),
            ("leaning right", "slanted right", "tilted right"),
        ),
    ),
    "who": ("speaker", tuple((name,) for name in SPEAKERS)),
    "loud": ("loudness", (("quiet", "soft"), ("normal", "moderate"), ("loud", "strong"))),
    "loudly": ("loudness", (("quietly", "softly"), ("at normal volume", "at medium volume"), ("loudly", "with force"))),
    "slowly": ("pace", (("quickly", "rapidly"), ("steadily", "at normal speed"), ("slowly", "without hurry"))),
    # Of the digit itself: {digit} is the word or the numeral, {a} its article.
    "figure": ("digit", (("the digit {digit}", "the number {digit}", "the figure {digit}", "{a} {digit}"),) * 10),
    "word": ("digit", (("{digit}", "the digit {digit}", "the number {digit}"),) * 10),
}
CLASSES = {"digit": 10, "weight": 3, "slant": 3, "speaker": len(SPEAKERS), "loudness": 3, "pace": 3}

PLAIN = ("{figure}", "this is {figure}", "it is {figure}", "an example of {figure}")
OF_THE_PICTURE = (
    "a picture of {figure}",
    "{figure} written by hand",
    "a handwritten {digit}",
    "somebody wrote {figure} in white on black",
    "white lines on black form {figure}",
    "{figure} drawn with {thick} strokes",
    "a handwritten {digit} with {thick} lines",
    "{thick} lines form {figure}",
    "the strokes of this {digit} are {thick}",
    "a picture of {figure} in {thick} strokes",
    "{figure} {leaning}",
    "a handwritten {digit} {leaning}",
    "the picture shows {figure} {leaning}",
    "somebody wrote {figure} {leaning}",
    "{figure} drawn by hand and {leaning}",
    "{figure} {leaning} with {thick} strokes",
    "a picture of {figure} {leaning} in {thick} lines",
    "{thick} strokes form {figure} {leaning}",
    "a handwritten {digit} {leaning} whose lines are {thick}",
    "the picture shows {figure} with {thick} strokes {leaning}",
)
OF_THE_SOUND = (
    "somebody says {word}",
    "a recording of {word}",
    "a voice says {word}",
    "{word} is read aloud",
    "the sound of a person saying {word}",
    "{who} says {word}",
    "{who} reads {word} aloud",
    "{word} spoken by {who}",
    "the voice of {who} saying {word}",
    "a recording in which {who} says {word}",
    "somebody says {word} {loudly}",
    "a {loud} voice says {word}",
    "{word} spoken in a {loud} voice",
    "somebody says {word} {slowly}",
    "a recording of {word} spoken {slowly}",
    "{word} is read aloud {slowly}",
    "{who} says {word} {loudly}",
    "{who} reads {word} in a {loud} voice",
    "the {loud} voice of {who} saying {word}",
    "{word} spoken {loudly} by {who}",
    "{who} says {word} {slowly}",
    "{word} spoken {slowly} by {who}",
    "{who} reads {word} aloud {slowly}",
    "somebody says {word} {loudly} and {slowly}",
    "a {loud} voice saying {word} {slowly}",
)
OF_BOTH = (
    "{figure} written and spoken",
    "somebody writes {figure} and says it aloud",
    "{figure} with {thick} strokes read aloud by {who}",
    "{who} reads a handwritten {digit} {leaning}",
    "{figure} drawn with {thick} strokes and spoken {slowly}",
    "a picture of {figure} {leaning} and a {loud} voice saying it",
    "{who} says {word} {loudly} and wrote it with {thick} strokes",
    "the picture shows {figure} {leaning} while {who} says it {slowly}",
    "{thick} lines form {figure} and {who} says it {slowly}",
    "a handwritten {digit} {leaning} and spoken {loudly}",
    "a {loud} voice reads {figure} in {thick} lines",
    "{word} spoken by {who} and written in {thick} lines {leaning}",
    "a handwritten {digit} with {thick} lines and the {loud} voice of {who}",
    "somebody says {word} {slowly} and wrote it {leaning}",
)
TEMPLATES = {
    "picture": PLAIN + OF_THE_PICTURE,
    "sound": PLAIN + OF_THE_SOUND,
    "both": PLAIN + OF_THE_PICTURE + OF_THE_SOUND + OF_BOTH,
}

DRAWS = 2 + len(PHRASES)  # integers that a caption is made of
DRAWN = 1 << 40  # each below this; the remainder by a number of choices is uniform to one part in 10^8


def write(kind: str, attributes: Mapping[str, Tensor], draws: Tensor) -> list[str]:
    """One caption a row, a pure function of the row's attributes and draws.

    kind: what captions tell of, one of `TEMPLATES`. attributes: (rows,) int64 below `CLASSES` of digit and of whatever
    the kind tells of: weight and slant of the picture, speaker, loudness and pace of the sound.
    draws: (rows, DRAWS) int64 in [0, DRAWN).
    """
    templates, fills = TEMPLATES[kind], []
    which, numeral, *choices = draws.T.tolist()
    for (slot, (attribute, words)), choice in zip(PHRASES.items(), choices, strict=True):
        if attribute in attributes:
            values = attributes[attribute].tolist()
            fills.append((slot, [words[v][c % len(words[v])] for v, c in zip(values, choice, strict=True)]))
    captions = []
    for row, digit in enumerate(attributes["digit"].tolist()):
        phrases = {slot: phrase[row] for slot, phrase in fills}
        named = str(digit) if numeral[row] % 4 == 0 else DIGITS[digit]
        once = templates[which[row] % len(templates)].format(**phrases, digit="{digit}")
        captions.append(once.format(digit=named, a="an" if digit == 8 else "a"))
    return captions


def words(text: str) -> list[str]:
    """Its words and numerals in lower case. Whatever else stands between them, of any whitespace, does not count."""
    return re.findall(r"[a-z0-9]+", text.lower())


NAMED = {name: digit for digit, word in enumerate(DIGITS) for name in (word, str(digit))}


def digit_of(text: str) -> int:
    """The digit that a text names, as often as it likes; -1 where it names none, or several."""
    named = {NAMED[word] for word in words(text) if word in NAMED}
    return named.pop() if len(named) == 1 else -1


# Tokens are words. The end follows the last word and fills what is left.


def _filled(template: str) -> Iterable[str]:
    """Every word of a template and of what may fill its slots, and its slots."""
    yield from re.sub(r"\{\w+\}", " ", template).split()
    for slot in re.findall(r"\{(\w+)\}", template):
        for phrases in PHRASES[slot][1] if slot in PHRASES else ():
            for phrase in phrases:
                yield from _filled(phrase)


SPECIAL = ("<unknown>", "<start>", "<end>")
UNKNOWN, START, END = range(len(SPECIAL))
VOCABULARY = SPECIAL + tuple(
    sorted({word for kind in TEMPLATES.values() for each in kind for word in _filled(each)} | {"a", "an"} | set(NAMED))
)
TOKENS = {word: number for number, word in enumerate(VOCABULARY)}
MOST_WORDS = 16  # of a caption


def encode(texts: Sequence[str], length: int = MOST_WORDS + 1) -> Tensor:
    """(rows, length) int64: the ids of each text's words, then END to the last place.

    A word that is none of the vocabulary's becomes UNKNOWN; words for which no place is left before an END are dropped.
    """
    ids = torch.full((len(texts), length), END)
    for row, text in enumerate(texts):
        known = [TOKENS.get(word, UNKNOWN) for word in words(text)[: length - 1]]
        ids[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
    return ids


def decode(ids: Tensor) -> list[str]:
    """The texts of (rows, any length) ids: words up to the first END, or to the last place; START is left out."""
    texts = []
    for row in ids.tolist():
        row = row[: row.index(END)] if END in row else row
        texts.append(" ".join(VOCABULARY[each] for each in row if each != START))
    return texts
